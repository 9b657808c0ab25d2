/* Writes the first image of a result: PNG with libpng, or PPM, which needs no library (CMakeLists.txt chooses).
 * Returns NULL, or what failed. */
#ifndef SAVE_IMAGE_H
#define SAVE_IMAGE_H

#include <ebca.h>
#include <stdio.h>
#include <string.h>

#if defined(EXAMPLES_PNG)
#include <png.h>

static const char* save_image(const char* path, const ebca_result* result) {
    static png_image image;
    memset(&image, 0, sizeof image);
    image.version = PNG_IMAGE_VERSION;
    image.width = (png_uint_32)result->width;
    image.height = (png_uint_32)result->height;
    image.format = PNG_FORMAT_RGB;
    return png_image_write_to_file(&image, path, 0, result->pixels, 0, NULL) ? NULL : image.message;
}
#else
static const char* save_image(const char* path, const ebca_result* result) {
    size_t bytes = (size_t)result->width * (size_t)result->height * 3;
    FILE* file = fopen(path, "wb");
    int written;
    if (!file) return "the file cannot be written";
    written = fprintf(file, "P6\n%d %d\n255\n", (int)result->width, (int)result->height) > 0 &&
              fwrite(result->pixels, 1, bytes, file) == bytes;
    return fclose(file) == 0 && written ? NULL : "the file cannot be written";
}
#endif

#endif
