// Numbers in texts as C spells them, "12345.5", whatever locale the host has chosen: streams take the global C++ locale
// when they are made, and the functions of C that of the thread or process. Neither may be changed for the host.
#pragma once

#include <sstream>
#include <string>

namespace ebca::internal {

// To write numbers to.
class ClassicText : public std::ostringstream {
  public:
    ClassicText();
};

// To read numbers from.
class ClassicWords : public std::istringstream {
  public:
    explicit ClassicWords(const std::string& words);
};

}  // namespace ebca::internal
