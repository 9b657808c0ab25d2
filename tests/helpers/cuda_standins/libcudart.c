/* CUDA's runtime. Device memory is host memory, copies happen at once, streams and events mean nothing, and kernels do
   nothing. Functions that are missing here return 0, which is success: see build.py.

   The device has the compute capability 8.6: below 8.0, attention would get other kernels. */
#include <stdlib.h>
#include <string.h>

typedef int status; /* 0: success */

enum { ALIGNMENT = 256, MAJOR = 8, MINOR = 6, WARP = 32, PROCESSORS = 80, THREADS = 1024, SHARED = 101376 };
static const size_t MEMORY = (size_t)24 << 30;
static void *const HANDLE = (void *)16;

/* Calls and bytes of cudaMalloc, calls of cudaFree. */
static size_t counts[3];
size_t *standin_counts(void) { return counts; }

static status allocate(void **pointer, size_t size) {
    *pointer = aligned_alloc(ALIGNMENT, (size / ALIGNMENT + 1) * ALIGNMENT);
    return *pointer == NULL ? 2 : 0; /* cudaErrorMemoryAllocation */
}

status cudaMalloc(void **pointer, size_t size) {
    counts[0] += 1;
    counts[1] += size;
    return allocate(pointer, size);
}
status cudaFree(void *pointer) {
    counts[2] += pointer != NULL;
    free(pointer);
    return 0;
}
status cudaMallocHost(void **pointer, size_t size) { return allocate(pointer, size); }
status cudaHostAlloc(void **pointer, size_t size, unsigned flags) { return allocate(pointer, size); }
status cudaFreeHost(void *pointer) {
    free(pointer);
    return 0;
}
status cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = MEMORY;
    return 0;
}

status cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    memcpy(to, from, size);
    return 0;
}
status cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return cudaMemcpy(to, from, size, kind);
}
status cudaMemset(void *to, int value, size_t size) {
    memset(to, value, size);
    return 0;
}
status cudaMemsetAsync(void *to, int value, size_t size, void *stream) { return cudaMemset(to, value, size); }

status cudaGetDeviceCount(int *count) {
    *count = 1;
    return 0;
}
status cudaGetDevice(int *device) {
    *device = 0;
    return 0;
}
status cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return 0;
}
status cudaDriverGetVersion(int *version) { return cudaRuntimeGetVersion(version); }
const char *cudaGetErrorString(status error) { return "an error of the stand-in for CUDA's runtime"; }
const char *cudaGetErrorName(status error) { return "standInError"; }

/* The numbers are those of cudaDeviceAttr. */
status cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: *value = THREADS; return 0;     /* maxThreadsPerBlock */
    case 10: *value = WARP; return 0;       /* warpSize */
    case 16: *value = PROCESSORS; return 0; /* multiProcessorCount */
    case 75: *value = MAJOR; return 0;      /* computeCapabilityMajor */
    case 76: *value = MINOR; return 0;      /* computeCapabilityMinor */
    case 97: *value = SHARED; return 0;     /* maxSharedMemoryPerBlockOptin */
    default: *value = 0; return 0;
    }
}

/* Where the fields of cudaDeviceProp lie in CUDA 13 (its driver_types.h). */
enum {
    TOTAL_GLOBAL_MEM = 288,
    SHARED_MEM_PER_BLOCK = 296,
    REGS_PER_BLOCK = 304,
    WARP_SIZE = 308,
    MAX_THREADS_PER_BLOCK = 320,
    MAX_THREADS_DIM = 324,
    MAX_GRID_SIZE = 336,
    CAPABILITY = 360,
    MULTI_PROCESSOR_COUNT = 384,
    MAX_THREADS_PER_MULTI_PROCESSOR = 604,
    SHARED_MEM_PER_BLOCK_OPTIN = 672,
    SIZE_OF_PROPERTIES = 1008
};

status cudaGetDeviceProperties(void *properties, int device) {
    char *at = properties;
    const size_t memory[] = {MEMORY, 48 << 10}, optin = SHARED;
    const int registers_and_warp[] = {64 << 10, WARP}, threads[] = {THREADS, THREADS, THREADS, 64};
    const int grid[] = {0x7fffffff, 65535, 65535}, capability[] = {MAJOR, MINOR};
    const int processors = PROCESSORS, resident = 1536;
    memset(at, 0, SIZE_OF_PROPERTIES);
    strcpy(at, "stand-in");
    memcpy(at + TOTAL_GLOBAL_MEM, memory, sizeof memory);
    memcpy(at + REGS_PER_BLOCK, registers_and_warp, sizeof registers_and_warp);
    memcpy(at + MAX_THREADS_PER_BLOCK, threads, sizeof threads);
    memcpy(at + MAX_GRID_SIZE, grid, sizeof grid);
    memcpy(at + CAPABILITY, capability, sizeof capability);
    memcpy(at + MULTI_PROCESSOR_COUNT, &processors, sizeof processors);
    memcpy(at + MAX_THREADS_PER_MULTI_PROCESSOR, &resident, sizeof resident);
    memcpy(at + SHARED_MEM_PER_BLOCK_OPTIN, &optin, sizeof optin);
    return 0;
}

/* cudaPointerAttributes: everything is device memory of device 0. */
status cudaPointerGetAttributes(void *attributes, const void *pointer) {
    struct {
        int type, device;
        const void *device_pointer, *host_pointer;
    } const known = {2, 0, pointer, NULL};
    memcpy(attributes, &known, sizeof known);
    return 0;
}

status cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) {
    *blocks = 2;
    return 0;
}
status cudaStreamIsCapturing(void *stream, int *capturing) {
    *capturing = 0;
    return 0;
}

static status handle(void **made) {
    *made = HANDLE;
    return 0;
}
status cudaStreamCreate(void **stream) { return handle(stream); }
status cudaStreamCreateWithFlags(void **stream, unsigned flags) { return handle(stream); }
status cudaEventCreate(void **event) { return handle(event); }
status cudaEventCreateWithFlags(void **event, unsigned flags) { return handle(event); }
