// Numbers in texts as C spells them, "12345.5", whatever locale the host has chosen: streams take the global C++ locale
// when they are made, and the functions of C that of the thread or process. Neither may be changed for the host.
#pragma once

#include <fstream>
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

// While it lives, strtod, printf and the like follow the C locale on this thread, and on no other.
class ClassicThread {
  public:
    ClassicThread();
    ~ClassicThread();
    ClassicThread(const ClassicThread&) = delete;
    ClassicThread& operator=(const ClassicThread&) = delete;

  private:
    void* before_;
};

}  // namespace ebca::internal
