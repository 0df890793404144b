// The part of the Arduino core that the exported sketch uses, for a workstation: input from standard input.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdio>

inline unsigned long micros() {
  static unsigned long now = 0;
  return now += 7;
}

struct SerialPort {
  void begin(unsigned long) {}
  int available() {
    const int next = std::getchar();
    if (next == EOF) return 0;
    std::ungetc(next, stdin);
    return 1;
  }
  size_t readBytes(char *to, size_t bytes) { return std::fread(to, 1, bytes, stdin); }
  void print(const char *text) { std::fputs(text, stdout); }
  void print(long number) { std::printf("%ld", number); }
  void print(int number) { std::printf("%d", number); }
  void print(unsigned long number) { std::printf("%lu", number); }
  void print(unsigned int number) { std::printf("%u", number); }
  void print(double number, int digits = 2) { std::printf("%.*f", digits, number); }
  void println(const char *text) { std::puts(text); }
};
static SerialPort Serial;
