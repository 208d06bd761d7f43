// Reads a picture of the network's size, and prints what the network makes of it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <string>
#include <vector>

#include "network.h"

// x[C,H,W] of a binary PPM, or of a PGM for a network that takes grey. It is empty if the file is something else.
inline std::vector<float> read_picture(const std::string& file) {
  constexpr int values = CHANNELS * HEIGHT * WIDTH;
  std::vector<unsigned char> pixels(values);
  int width = 0, height = 0, largest = 0;
  char kind = 0;
  std::FILE* stream = std::fopen(file.c_str(), "rb");
  bool read = stream && std::fscanf(stream, "P%c %d %d %d", &kind, &width, &height, &largest) == 4 &&
              kind == (CHANNELS == 1 ? '5' : '6') && width == WIDTH && height == HEIGHT && largest == 255 &&
              std::fgetc(stream) != EOF && std::fread(pixels.data(), 1, values, stream) == pixels.size();
  if (stream) std::fclose(stream);
  if (!read) {
    std::fprintf(stderr, "%s is no binary %s of %dx%d pixels\n", file.c_str(), CHANNELS == 1 ? "PGM" : "PPM", WIDTH, HEIGHT);
    return {};
  }
  std::vector<float> x(values);
  for (int i = 0; i < values; ++i) {
    int channel = i / (HEIGHT * WIDTH), place = i % (HEIGHT * WIDTH);
    x[i] = pixels[place * CHANNELS + channel] * SCALE[channel] + SHIFT[channel];
  }
  return x;
}

// Prints the five most probable classes of logits[K].
inline void print_classes(const std::string& file, const float* logits) {
  std::vector<int> order(CLASSES);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  double sum = 0;
  for (int k = 0; k < CLASSES; ++k) sum += std::exp(double(logits[k]) - logits[order[0]]);
  std::printf("%s", file.c_str());
  for (int k = 0; k < std::min(5, CLASSES); ++k)
    std::printf("\t%s %.4f", LABELS[order[k]], std::exp(double(logits[order[k]]) - logits[order[0]]) / sum);
  std::printf("\n");
}
