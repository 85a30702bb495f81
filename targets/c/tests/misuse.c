/* What an app does wrong is answered, also under AddressSanitizer and valgrind: misuse MODEL */
#include <lacuna.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(call, status)                                                                        \
    do {                                                                                            \
        lacuna_status got = (call);                                                                 \
        if (got != (status)) {                                                                      \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, lacuna_status_name(got), lacuna_last_error()); \
            return 1;                                                                               \
        }                                                                                           \
    } while (0)

int main(int argc, char **argv)
{
    lacuna_model *model = NULL, *copy;
    lacuna_session *session = NULL;
    lacuna_tensor_info info = {.size = sizeof info};
    lacuna_input input = {.size = sizeof input};
    lacuna_output output = {.size = sizeof output};
    char *on_the_heap = calloc(1, 64);
    float *pixels, scores[10];
    size_t n;

    if (argc != 2)
        return 2;
    EXPECT(lacuna_model_open(argv[1], &model), LACUNA_STATUS_OK);
    EXPECT(lacuna_session_new(model, NULL, &session), LACUNA_STATUS_OK);
    EXPECT(lacuna_session_input(session, 0, &info), LACUNA_STATUS_OK);
    pixels = calloc(1, info.bytes);
    input.data = pixels;
    input.bytes = info.bytes;
    output.data = scores;
    output.bytes = sizeof scores;

    /* Names that are none. */
    EXPECT(lacuna_model_input_count((lacuna_model *)session, &n), LACUNA_STATUS_INVALID_HANDLE);
    EXPECT(lacuna_model_input_count((lacuna_model *)on_the_heap, &n), LACUNA_STATUS_INVALID_HANDLE);
    EXPECT(lacuna_session_run((lacuna_session *)model, &input, 1, &output, 1), LACUNA_STATUS_INVALID_HANDLE);
    EXPECT(lacuna_session_run(NULL, &input, 1, &output, 1), LACUNA_STATUS_INVALID_HANDLE);

    /* Memory that is too small is not run over. */
    output.bytes = sizeof scores - 4;
    EXPECT(lacuna_session_run(session, &input, 1, &output, 1), LACUNA_STATUS_INVALID_ARGUMENT);
    output.bytes = sizeof scores;
    input.bytes += 4;
    EXPECT(lacuna_session_run(session, &input, 1, &output, 1), LACUNA_STATUS_INVALID_ARGUMENT);
    input.bytes -= 4;
    EXPECT(lacuna_session_run(session, &input, 1, &output, 1), LACUNA_STATUS_OK);

    /* The model goes first, and twice; the session goes on. */
    copy = model;
    EXPECT(lacuna_model_free(model), LACUNA_STATUS_OK);
    EXPECT(lacuna_model_free(copy), LACUNA_STATUS_INVALID_HANDLE);
    EXPECT(lacuna_session_run(session, &input, 1, &output, 1), LACUNA_STATUS_OK);
    EXPECT(lacuna_session_free(session), LACUNA_STATUS_OK);
    EXPECT(lacuna_session_free(session), LACUNA_STATUS_INVALID_HANDLE);
    EXPECT(lacuna_session_run(session, &input, 1, &output, 1), LACUNA_STATUS_INVALID_HANDLE);

    /* A model in memory that is no model, or half of one. */
    EXPECT(lacuna_model_open_memory(on_the_heap, 64, &model), LACUNA_STATUS_INVALID_MODEL);
    {
        FILE *file = fopen(argv[1], "rb");
        char *half = malloc(100000);
        if (!file || fread(half, 1, 100000, file) != 100000)
            return 3;
        EXPECT(lacuna_model_open_memory(half, 100000, &model), LACUNA_STATUS_INVALID_MODEL);
        free(half);
        fclose(file);
    }
    free(pixels);
    free(on_the_heap);
    puts("answered");
    return 0;
}
