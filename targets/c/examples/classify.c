/*
 * What a network sees in a picture: classify MODEL PICTURE.ppm [--threads N] [--isa NAME] [--times]
 *
 * Colours are normalised as networks for ImageNet expect it, greys as those for Fashion-MNIST.
 *
 *     gcc classify.c $(pkg-config --cflags --libs lacuna) -o classify
 */
#include "image.h"
#include <lacuna.h>
#include <string.h>
#include <time.h>

static const float IMAGENET_MEAN[3] = {0.485f, 0.456f, 0.406f}, IMAGENET_DEVIATION[3] = {0.229f, 0.224f, 0.225f};
static const float GREY_MEAN[1] = {0.2860f}, GREY_DEVIATION[1] = {0.3530f};

static int failed(const char *what, lacuna_status status)
{
    if (status == LACUNA_STATUS_OK)
        return 0;
    fprintf(stderr, "%s: %s: %s\n", what, lacuna_status_name(status), lacuna_last_error());
    return 1;
}

static double milliseconds(void)
{
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
    lacuna_session_options options = {.size = sizeof options};
    lacuna_tensor_info in = {.size = sizeof in}, out = {.size = sizeof out};
    lacuna_model *model = NULL;
    lacuna_session *session = NULL;
    float *pixels = NULL, *scores = NULL;
    size_t i, k, classes;
    int grey, times = 0, result = 1;
    double opened, planned, started, ended;

    if (argc < 3) {
        fprintf(stderr, "classify MODEL PICTURE.ppm [--threads N] [--isa NAME] [--times]\n");
        return 2;
    }
    for (i = 3; i < (size_t)argc; i++) {
        if (!strcmp(argv[i], "--threads") && argv[i + 1])
            options.threads = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--isa") && argv[i + 1])
            options.isa = argv[++i];
        else if (!strcmp(argv[i], "--times"))
            times = 1;
    }
    if (lacuna_abi_version() != LACUNA_ABI_VERSION) {
        fprintf(stderr, "compiled for interface %u, linked with %u\n", LACUNA_ABI_VERSION, lacuna_abi_version());
        return 1;
    }

    opened = milliseconds();
    if (failed("model", lacuna_model_open(argv[1], &model)) ||
        failed("session", lacuna_session_new(model, &options, &session)))
        goto done;
    planned = milliseconds();
    if (failed("input", lacuna_session_input(session, 0, &in)) ||
        failed("output", lacuna_session_output(session, 0, &out)))
        goto done;
    if (in.dtype != LACUNA_DTYPE_F32 || in.rank != 4 || in.shape[0] != 1 || (in.shape[1] != 1 && in.shape[1] != 3)) {
        fprintf(stderr, "%s: input `%s` is no picture\n", argv[1], in.name);
        goto done;
    }
    grey = in.shape[1] == 1;
    pixels = malloc(in.bytes);
    scores = malloc(out.bytes);
    if (!pixels || !scores || image_read(argv[2], pixels, in.shape[1], in.shape[2], in.shape[3],
                                         grey ? GREY_MEAN : IMAGENET_MEAN, grey ? GREY_DEVIATION : IMAGENET_DEVIATION))
        goto done;

    {
        lacuna_input input = {.size = sizeof input, .name = in.name, .data = pixels, .bytes = in.bytes};
        lacuna_output output = {.size = sizeof output, .name = out.name, .data = scores, .bytes = out.bytes};
        started = milliseconds();
        if (failed("run", lacuna_session_run(session, &input, 1, &output, 1)))
            goto done;
        ended = milliseconds();
    }

    if (times)
        fprintf(stderr, "opened and planned in %.1f ms, first run in %.1f ms\n", planned - opened, ended - started);
    classes = out.bytes / sizeof *scores;
    for (k = 0; k < 5 && k < classes; k++) {
        size_t best = 0;
        for (i = 1; i < classes; i++)
            if (scores[i] > scores[best])
                best = i;
        printf("%4zu  %8.4f\n", best, scores[best]);
        scores[best] = -1e30f;
    }
    result = 0;
done:
    free(pixels);
    free(scores);
    lacuna_session_free(session);
    lacuna_model_free(model);
    return result;
}
