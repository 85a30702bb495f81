// Every kernel for a host, by name.
#define LACUNA_BF16 1
#include "vector.cu"
#include "matrix.cu"
#undef CONV
#include "hopper.cu"
#include "decoder.cu"
#include "elementwise.cu"
#include "rows.cu"
#include "window.cu"

static const struct {
  const char* name;
  void (*call)(void**);
} KERNELS[] = {
#define K(NAME) {#NAME, [](void** a) { host::call(NAME, a); }},
#include "names.h"
};

// Runs a kernel; `arguments` point to its parameters. 1: there is none of that name; 2: its threads wait for ever.
extern "C" int lacuna_host_launch(const char* name, const u32* grid, u32 threads, void** arguments) {
  for (const auto& k : KERNELS) {
    if (strcmp(k.name, name)) continue;
    host::body = k.call;
    host::arguments = arguments;
    host::grid = {grid[0], grid[1], grid[2]};
    for (host::at.z = 0; host::at.z < grid[2]; host::at.z++)
      for (host::at.y = 0; host::at.y < grid[1]; host::at.y++)
        for (host::at.x = 0; host::at.x < grid[0]; host::at.x++)
          if (!host::run_block(threads)) return 2;
    return 0;
  }
  return 1;
}
