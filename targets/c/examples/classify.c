/*
 * What a network sees in a picture: classify MODEL PICTURE.ppm [--unit] [--threads N] [--isa NAME]
 *
 * Values of channels are normalised as ImageNet's networks expect it; --unit leaves them between 0 and 1.
 *
 *     gcc classify.c $(pkg-config --cflags --libs lacuna) -o classify
 */
#include "image.h"
#include <lacuna.h>
#include <string.h>

static const float IMAGENET_MEAN[3] = {0.485f, 0.456f, 0.406f}, IMAGENET_DEVIATION[3] = {0.229f, 0.224f, 0.225f};
static const float ZERO[3] = {0, 0, 0}, ONE[3] = {1, 1, 1};

static int failed(const char *what, lacuna_status status)
{
    if (status == LACUNA_STATUS_OK)
        return 0;
    fprintf(stderr, "%s: %s: %s\n", what, lacuna_status_name(status), lacuna_last_error());
    return 1;
}

int main(int argc, char **argv)
{
    lacuna_session_options options = {.size = sizeof options};
    lacuna_tensor_info in = {.size = sizeof in}, out = {.size = sizeof out};
    lacuna_model *model = NULL;
    lacuna_session *session = NULL;
    float *pixels = NULL, *scores = NULL;
    size_t i, k, classes;
    int unit = 0, result = 1;

    if (argc < 3) {
        fprintf(stderr, "classify MODEL PICTURE.ppm [--unit] [--threads N] [--isa NAME]\n");
        return 2;
    }
    for (i = 3; i < (size_t)argc; i++) {
        if (!strcmp(argv[i], "--unit"))
            unit = 1;
        else if (!strcmp(argv[i], "--threads") && argv[i + 1])
            options.threads = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--isa") && argv[i + 1])
            options.isa = argv[++i];
    }
    if (lacuna_abi_version() != LACUNA_ABI_VERSION) {
        fprintf(stderr, "compiled for interface %u, linked with %u\n", LACUNA_ABI_VERSION, lacuna_abi_version());
        return 1;
    }

    if (failed("model", lacuna_model_open(argv[1], &model)) ||
        failed("session", lacuna_session_new(model, &options, &session)) ||
        failed("input", lacuna_session_input(session, 0, &in)) ||
        failed("output", lacuna_session_output(session, 0, &out)))
        goto done;
    if (in.dtype != LACUNA_DTYPE_F32 || in.rank != 4 || in.shape[0] != 1 || in.shape[1] > 3) {
        fprintf(stderr, "%s: input `%s` is no picture\n", argv[1], in.name);
        goto done;
    }
    pixels = malloc(in.bytes);
    scores = malloc(out.bytes);
    if (!pixels || !scores || image_read(argv[2], pixels, in.shape[1], in.shape[2], in.shape[3],
                                         unit ? ZERO : IMAGENET_MEAN, unit ? ONE : IMAGENET_DEVIATION))
        goto done;

    {
        lacuna_input input = {.size = sizeof input, .name = in.name, .data = pixels, .bytes = in.bytes};
        lacuna_output output = {.size = sizeof output, .name = out.name, .data = scores, .bytes = out.bytes};
        if (failed("run", lacuna_session_run(session, &input, 1, &output, 1)))
            goto done;
    }

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
