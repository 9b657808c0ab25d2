# What is installed. Nothing of it names the prefix, so that it can be moved.
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/ebca)

install(TARGETS ebca EXPORT ebcaTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT ebcaTargets NAMESPACE ebca:: DESTINATION ${package})
install(FILES include/ebca.h include/ebca.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
if(TARGET ebca_static)
  install(TARGETS ebca_static EXPORT ebcaStaticTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT ebcaStaticTargets NAMESPACE ebca:: DESTINATION ${package})
endif()

configure_package_config_file(cmake/ebcaConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/ebcaConfig.cmake
                              INSTALL_DESTINATION ${package})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/ebcaConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/ebcaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/ebcaConfigVersion.cmake
        DESTINATION ${package})

# For pkg-config. A host in C links the library of C++ beside the static one.
file(RELATIVE_PATH includedir_from_libdir ${CMAKE_INSTALL_FULL_LIBDIR} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
set(cxx_libraries ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(FILTER cxx_libraries INCLUDE REGEX "^(stdc\\+\\+|c\\+\\+)$")
if(other_standard_library)
  set(cxx_libraries ${other_standard_library})
endif()
list(TRANSFORM cxx_libraries PREPEND -l)
list(JOIN cxx_libraries " " cxx_libraries)
set(private_libs "-lz -ldl ${cxx_libraries} -lm -pthread")
foreach(form ebca ebca-static)
  if(form STREQUAL ebca OR TARGET ebca_static)
    configure_file(cmake/${form}.pc.in ${CMAKE_CURRENT_BINARY_DIR}/${form}.pc @ONLY)
    install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${form}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
  endif()
endforeach()

# The compiled GPU kernels; a wheel has them among the Python package's files.
if(NOT SKBUILD)
  install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/../../plugins/kernels/compiled/
          DESTINATION ${CMAKE_INSTALL_DATADIR}/ebca/kernels)
endif()
