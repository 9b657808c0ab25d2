// Numbers in texts as C spells them, "12345.5", whatever locale the host has chosen: streams take the global C++ locale
// when they are made, and the functions of C that of the thread or process. Neither may be changed for the host.
#pragma once

#include <optional>
#include <sstream>
#include <string>
#include <string_view>

namespace ebca::internal {

// To write numbers to. Like the next, it throws where memory ends, rather than leave pieces out in silence.
class ClassicText : public std::ostringstream {
  public:
    ClassicText();
};

// To read numbers from.
class ClassicWords : public std::istringstream {
  public:
    explicit ClassicWords(const std::string& words);
};

// The number that all of a text is; empty if it is none, or beyond the range of double.
std::optional<double> to_number(std::string_view text);

}  // namespace ebca::internal
