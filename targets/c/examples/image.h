/* A PPM or PGM picture as the planes that an image network reads. For the examples of C and C++. */
#ifndef IMAGE_H
#define IMAGE_H

#include <stdio.h>
#include <stdlib.h>

/* The next number of a PPM header; comments run from # to the end of the line. -1 when there is none. */
static long image_number(FILE *file)
{
    int c = getc(file);
    long n = 0;
    while (c == '#' || c == ' ' || c == '\t' || c == '\r' || c == '\n') {
        if (c == '#')
            while (c != '\n' && c != EOF)
                c = getc(file);
        c = getc(file);
    }
    if (c < '0' || c > '9')
        return -1;
    for (; c >= '0' && c <= '9' && n < 1000000; c = getc(file))
        n = n * 10 + (c - '0');
    return n;
}

/*
 * Reads a binary PPM (P6) or PGM (P5) of 8 bits and fills planes[channels][height][width]: the largest part in the
 * middle that has the planes' proportions, bilinear, as (value / 255 - mean[c]) / deviation[c]. Returns 0, or -1 with a
 * message on stderr.
 */
static int image_read(const char *path, float *planes, size_t channels, size_t height, size_t width,
                      const float *mean, const float *deviation)
{
    FILE *file = fopen(path, "rb");
    unsigned char *pixels = NULL;
    long w, h, most;
    int kind, result = -1;
    size_t c, y, x, stored;
    if (!file) {
        perror(path);
        return -1;
    }
    kind = getc(file) == 'P' ? getc(file) : 0;
    w = image_number(file);
    h = image_number(file);
    most = image_number(file);
    stored = kind == '6' ? 3 : 1;
    if ((kind != '5' && kind != '6') || w < 1 || h < 1 || w > 65535 || h > 65535 || most != 255) {
        fprintf(stderr, "%s: no binary PPM or PGM of 8 bits\n", path);
        goto done;
    }
    pixels = (unsigned char *)malloc((size_t)w * (size_t)h * stored);
    if (!pixels || fread(pixels, (size_t)w * stored, (size_t)h, file) != (size_t)h) {
        fprintf(stderr, "%s: fewer pixels than %ld x %ld\n", path, w, h);
        goto done;
    }
    {
        double scale_w = (double)w / (double)width, scale_h = (double)h / (double)height;
        double scale = scale_w < scale_h ? scale_w : scale_h;
        double left = ((double)w - scale * (double)width) / 2, top = ((double)h - scale * (double)height) / 2;
        for (c = 0; c < channels; c++)
            for (y = 0; y < height; y++)
                for (x = 0; x < width; x++) {
                    double sx = left + ((double)x + 0.5) * scale - 0.5, sy = top + ((double)y + 0.5) * scale - 0.5;
                    double v[2][2];
                    long i, j, x0, y0;
                    sx = sx < 0 ? 0 : sx;
                    sy = sy < 0 ? 0 : sy;
                    x0 = (long)sx;
                    y0 = (long)sy;
                    for (i = 0; i < 2; i++)
                        for (j = 0; j < 2; j++) {
                            size_t px = (size_t)(x0 + j < w ? x0 + j : w - 1), py = (size_t)(y0 + i < h ? y0 + i : h - 1);
                            v[i][j] = pixels[(py * (size_t)w + px) * stored + (stored == 3 ? c % 3 : 0)];
                        }
                    sx -= (double)x0;
                    sy -= (double)y0;
                    planes[(c * height + y) * width + x] =
                        (float)((((v[0][0] * (1 - sx) + v[0][1] * sx) * (1 - sy) +
                                  (v[1][0] * (1 - sx) + v[1][1] * sx) * sy) / 255 - mean[c]) / deviation[c]);
                }
    }
    result = 0;
done:
    free(pixels);
    fclose(file);
    return result;
}

#endif
