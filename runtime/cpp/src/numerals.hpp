// Numbers in texts as C spells them, "12345.5", whatever locale the host has chosen: streams take the global C++ locale
// when they are made, and the functions of C that of the thread or process. Neither may be changed for the host.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>

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

// A piece of a message: a text, a number, or what else can be written to a stream. It refers to what it was made of,
// and lets messages of all kinds share the code that writes them.
class Piece {
  public:
    Piece(const char* text) : kind_(Kind::text), text_(text) {}
    Piece(const std::string& text) : kind_(Kind::text), text_(text) {}
    Piece(std::string_view text) : kind_(Kind::text), text_(text) {}
    Piece(char text) : kind_(Kind::character), character_(text) {}
    template <typename Number, std::enable_if_t<std::is_arithmetic_v<Number>, int> = 0>
    Piece(Number number) {
        if constexpr (std::is_floating_point_v<Number>) {
            kind_ = Kind::real;
            real_ = static_cast<double>(number);
        } else if constexpr (std::is_unsigned_v<Number>) {
            kind_ = Kind::natural;
            natural_ = number;
        } else {
            kind_ = Kind::integer;
            integer_ = number;
        }
    }
    // What else can be written to a stream.
    template <typename Other, std::enable_if_t<!std::is_arithmetic_v<Other>, int> = 0>
    Piece(const Other& other)
        : kind_(Kind::other), other_{&other, [](std::ostream& out, const void* value) {
                                         out << *static_cast<const Other*>(value);
                                     }} {}
    void write(std::ostream& out) const;

  private:
    struct Written {
        const void* value;
        void (*write)(std::ostream& out, const void* value);
    };
    enum class Kind { text, character, real, natural, integer, other } kind_;
    union {
        std::string_view text_;
        char character_;
        double real_;
        uint64_t natural_;
        int64_t integer_;
        Written other_;
    };
};

// Pieces one after the other.
std::string joined(std::initializer_list<Piece> pieces);

// The number that all of a text is; empty if it is none, or beyond the range of double.
std::optional<double> to_number(std::string_view text);

}  // namespace ebca::internal
