// Small images of latents without the VAE, as runtime/images/preview.py makes them: red, green and blue are weighted
// sums of the latents' channels.
#pragma once

#include <cstdint>
#include <functional>

#include "contract/tensor.hpp"

namespace ebca::internal {

class Preview {
  public:
    // Fits the weights by least squares: smooth random latents are decoded, and each position is to give the mean
    // colour of the pixels that it stands for. channels: C; downscale: pixels per latent; decode: latents [n,C,h,w] to
    // images [n,3,H,W] in [-1, 1].
    Preview(int64_t channels, int64_t downscale, const std::function<Array(const Array&)>& decode);

    // Latents [n,C,h,w] of about unit variance to [n,h,w,3] in [0, 1].
    Array colours(const Array& latents) const;

    // [C+1,3]: weights per channel, then the colour of zeros.
    const Array& factors() const { return factors_; }

  private:
    Array factors_;
};

}  // namespace ebca::internal
