/* A device that is this process, behind the names of CUDA's driver: for tests of how the runtime calls it. One kernel, `add`: x[i] += k for
 * i < n, with Triton's two scratch pointers after its arguments. Launches are recorded while a stream is captured. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define API __attribute__((visibility("default")))
typedef struct { float *x; int32_t k, n; } launch;
static launch recorded[64];
static int count, capturing;
static _Thread_local int current;
static size_t used;
API int cuInit(unsigned flags) { return 0; }
API int cuDeviceGetCount(int *n) { *n = 1; return 0; }
API int cuDeviceGet(int *d, int i) { *d = i; return i ? 101 : 0; }
API int cuDeviceGetAttribute(int *v, int which, int d) { *v = which == 75 ? 9 : 0; return 0; }
API int cuDevicePrimaryCtxRetain(void **c, int d) { *c = &count; return 0; }
API int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
API int cuCtxSetCurrent(void *c) { current = c == &count; return current ? 0 : 201; }
API int cuMemAlloc_v2(uint64_t *p, size_t n) { if (!current) return 201; if (n > 1u << 30) return 2; *p = (uint64_t)aligned_alloc(256, (n + 255) & ~255ull); used += n; return 0; }
API int cuMemFree_v2(uint64_t p) { free((void *)p); return 0; }
API int cuMemsetD8Async(uint64_t p, unsigned char v, size_t n, void *s) { memset((void *)p, v, n); return current ? 0 : 201; }
API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *s) { memcpy((void *)to, from, n); return current ? 0 : 201; }
API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *s) { memcpy(to, (void *)from, n); return current ? 0 : 201; }
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *s) { memmove((void *)to, (void *)from, n); return 0; }
API int cuMemGetInfo_v2(size_t *free_, size_t *total) { *total = 1u << 30; *free_ = *total - used; return 0; }
API int cuModuleLoadData(void **m, const void *image) { if (memcmp(image, "fake", 4)) return 209; *m = (void *)image; return 0; }
API int cuModuleUnload(void *m) { return 0; }
API int cuModuleGetFunction(void **f, void *m, const char *name) { if (strcmp(name, "add")) return 500; *f = &recorded; return 0; }
API int cuFuncSetAttribute(void *f, int which, int value) { return which == 8 && value > 0 ? 0 : 1; }
static void run(launch l) { for (int i = 0; i < l.n; i++) l.x[i] += (float)l.k; }
API int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *s, void **params, void **extra) {
    if (!current) return 201;
    if (*(uint64_t *)params[3] || *(uint64_t *)params[4] || bx != 128 || by != 1 || !gx) return 1;
    launch l = {(float *)*(uint64_t *)params[0], *(int32_t *)params[1], *(int32_t *)params[2]};
    if (capturing) recorded[count++] = l; else run(l);
    return 0;
}
typedef struct { unsigned gx, gy, gz, bx, by, bz, shared; void *stream; struct { int id, pad, value; } *attributes; unsigned count; } config;
int overlapped;
API int fake_overlapped(void) { return overlapped; }
API int cuLaunchKernelEx(const config *c, void *f, void **params, void **extra) {
    if (c->count != 1 || c->attributes->id != 6 || c->attributes->value != 1 || *(uint64_t *)params[3] == 0) return 1;
    overlapped++;
    *(uint64_t *)params[3] = 0;
    return cuLaunchKernel(f, c->gx, c->gy, c->gz, c->bx, c->by, c->bz, c->shared, c->stream, params, extra);
}
API int cuMemHostAlloc(void **p, size_t n, unsigned flags) { *p = malloc(n); return 0; }
API int cuMemFreeHost(void *p) { free(p); return 0; }
API int cuStreamCreate(void **s, unsigned flags) { *s = &capturing; return 0; }
API int cuStreamDestroy_v2(void *s) { return 0; }
API int cuStreamSynchronize(void *s) { return capturing ? 900 : 0; }
API int cuStreamBeginCapture_v2(void *s, int mode) { capturing = 1; count = 0; return 0; }
API int cuStreamEndCapture(void *s, void **g) { capturing = 0; *g = recorded; return 0; }
API int cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long flags) { *e = g; return 0; }
API int cuGraphLaunch(void *e, void *s) { for (int i = 0; i < count; i++) run(recorded[i]); return 0; }
API int cuGetErrorString(int code, const char **text) { *text = code == 2 ? "out of memory" : code == 209 ? "no binary for this device" : "an error"; return 0; }
