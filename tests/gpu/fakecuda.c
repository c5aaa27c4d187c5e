/* The CUDA runtime and driver of a machine that has no card.

   "Device memory" is host memory, copies are real, kernels are counted and do nothing. Preloaded over
   libcudart, and found by its name libcuda.so.1 as the driver, it lets PyTorch's own C++ code for CUDA
   run: caching allocator, pinned memory, copies, autocast, autograd engine, choice of attention
   kernel, checks before a launch. Functions that are absent here end the process with their name.

   Environment: FAKE_CUDA_ARCH (compute capability times ten, 90), FAKE_CUDA_GB (memory of a card,
   139.8), FAKE_CUDA_TAKEN_GB (what another program holds of it, 0), FAKE_CUDA_DEVICES (cards, 1),
   CUDA_VISIBLE_DEVICES (which of them are there), FAKE_CUDA_SKIP_COPIES (any value: copies and fills of
   1 MB or more are left out, for runs that ask for memory and kernels, not for numbers),
   FAKE_CUDA_NO_PINNED (any value: no page-locked memory is had). A forked child can use no card that its
   parent used, as on a machine that has one. */

#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define API __attribute__((visibility("default")))
#define LARGE (1 << 20)                 /* bytes from which FAKE_CUDA_SKIP_COPIES leaves a copy out */
#define CONTEXT_BYTES (600ul << 20)     /* what a CUDA context takes of a card's memory */

static double number(const char *name, double otherwise) {
  const char *text = getenv(name);
  return text && *text ? atof(text) : otherwise;
}
static int arch(void) { return (int)number("FAKE_CUDA_ARCH", 90); }
static int device_count(void) { /* those named, up to the first that is none */
  int there = (int)number("FAKE_CUDA_DEVICES", 1), n = 0;
  const char *named = getenv("CUDA_VISIBLE_DEVICES");
  if (!named) return there;
  for (char *end; *named; named = end + (*end == ',')) {
    long card = strtol(named, &end, 10);
    if (end == named || card < 0 || card >= there) break;
    n++;
  }
  return n;
}
static size_t taken_memory(void) { return CONTEXT_BYTES + (size_t)(number("FAKE_CUDA_TAKEN_GB", 0) * (1ul << 30)); }
static size_t total_memory(void) { return (size_t)(number("FAKE_CUDA_GB", 139.8) * (1ul << 30)); }
static int skips(size_t bytes) {
  static int asked = -1;
  if (asked < 0) asked = getenv("FAKE_CUDA_SKIP_COPIES") != NULL;
  return asked && bytes >= LARGE;
}

/* After a fork the parent's card is lost to the child, which a loader's worker must not notice. */
static int is_used, is_lost;
static void in_child(void) { is_lost = is_used; }
__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }
#define USE_CARD() do { if (is_lost) return cudaErrorInitializationError; is_used = 1; } while (0)

/* Read from Python through ctypes. */
API long fake_launches, fake_waits;

/* ---- memory ------------------------------------------------------------------------------- */

typedef struct { char *start; size_t bytes; int is_host, device; } Range;
static Range ranges[1 << 16];
static int num_ranges;
static size_t used[64]; /* bytes by device */
static __thread int current;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *reserve(size_t bytes) { /* pages are taken when they are first written */
  bytes = bytes ? (bytes + 4095) & ~4095ul : 4096;
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}
static void add_range(void *start, size_t bytes, int is_host) {
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < num_ranges && ranges[i].start) i++;
  if (i == (int)(sizeof ranges / sizeof *ranges)) abort();
  ranges[i] = (Range){start, bytes, is_host, current};
  if (i == num_ranges) num_ranges++;
  if (!is_host) used[current] += bytes;
  pthread_mutex_unlock(&lock);
}
static int find_range(const void *p, Range *found) {
  pthread_mutex_lock(&lock);
  int i = 0;
  while (i < num_ranges && !(ranges[i].start && (char *)p >= ranges[i].start && (char *)p < ranges[i].start + ranges[i].bytes)) i++;
  int there = i < num_ranges;
  if (there) *found = ranges[i];
  pthread_mutex_unlock(&lock);
  return there;
}
static size_t drop_range(void *start) {
  size_t bytes = 0;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < num_ranges && !bytes; i++)
    if (ranges[i].start == start) {
      bytes = ranges[i].bytes;
      if (!ranges[i].is_host) used[ranges[i].device] -= bytes;
      ranges[i].start = NULL;
    }
  pthread_mutex_unlock(&lock);
  return bytes;
}
static cudaError_t release(void *p) {
  size_t bytes = p ? drop_range(p) : 0;
  if (bytes) munmap(p, (bytes + 4095) & ~4095ul);
  return 0;
}

API cudaError_t cudaMalloc(void **p, size_t bytes) {
  USE_CARD();
  *p = used[current] + bytes + taken_memory() > total_memory() ? NULL : reserve(bytes);
  if (!*p) return cudaErrorMemoryAllocation;
  add_range(*p, bytes, 0);
  return 0;
}
API cudaError_t cudaFree(void *p) { return release(p); }
API cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t s) { return cudaMalloc(p, bytes); }
API cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { return release(p); }
API cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
  USE_CARD();
  if (getenv("FAKE_CUDA_NO_PINNED")) return cudaErrorMemoryAllocation;
  *p = reserve(bytes);
  add_range(*p, bytes, 1);
  return 0;
}
API cudaError_t cudaFreeHost(void *p) { return release(p); }
API cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned flags) {
  USE_CARD();
  if (getenv("FAKE_CUDA_NO_PINNED")) return cudaErrorMemoryAllocation;
  add_range(p, bytes, 1);
  return 0;
}
API cudaError_t cudaHostUnregister(void *p) { drop_range(p); return 0; }
/* Memory and addresses apart, as the allocator's expandable segments take them. */
typedef struct { size_t bytes; int device; } Pages;
API CUresult cuMemAddressReserve(CUdeviceptr *p, size_t bytes, size_t alignment, CUdeviceptr at, unsigned long long f) {
  void *start = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  add_range(start, bytes, 0);
  used[current] -= bytes; /* addresses are no memory */
  *p = (CUdeviceptr)start;
  return 0;
}
API CUresult cuMemAddressFree(CUdeviceptr p, size_t bytes) {
  used[current] += drop_range((void *)p);
  munmap((void *)p, bytes);
  return 0;
}
API CUresult cuMemCreate(CUmemGenericAllocationHandle *h, size_t bytes, const CUmemAllocationProp *prop, unsigned long long f) {
  if (is_lost) return CUDA_ERROR_NOT_INITIALIZED;
  is_used = 1;
  if (used[prop->location.id] + bytes + taken_memory() > total_memory()) return CUDA_ERROR_OUT_OF_MEMORY;
  Pages *pages = malloc(sizeof *pages);
  *pages = (Pages){bytes, prop->location.id};
  used[pages->device] += bytes;
  *h = (CUmemGenericAllocationHandle)pages;
  return 0;
}
API CUresult cuMemRelease(CUmemGenericAllocationHandle h) {
  Pages *pages = (Pages *)h;
  used[pages->device] -= pages->bytes;
  free(pages);
  return 0;
}
API CUresult cuMemMap(CUdeviceptr p, size_t bytes, size_t offset, CUmemGenericAllocationHandle h, unsigned long long f) {
  return mprotect((void *)p, bytes, PROT_READ | PROT_WRITE) ? CUDA_ERROR_INVALID_VALUE : 0;
}
API CUresult cuMemUnmap(CUdeviceptr p, size_t bytes) {
  madvise((void *)p, bytes, MADV_DONTNEED);
  return mprotect((void *)p, bytes, PROT_NONE) ? CUDA_ERROR_INVALID_VALUE : 0;
}
API CUresult cuMemSetAccess(CUdeviceptr p, size_t bytes, const CUmemAccessDesc *d, size_t n) { return 0; }
API CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *p, CUmemAllocationGranularity_flags f) {
  *bytes = 2ul << 20;
  return 0;
}

/* Asked of the management library (found under its name) before pages are made. */
API int nvmlInit_v2(void) { return 0; }
API int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) { *device = (void *)0x10; return 0; }
API int nvmlDeviceGetGpuFabricInfoV(void *device, void *info) {
  if (arch() < 90) return 3; /* not supported, of which PyTorch warns */
  memset((char *)info + 4, 0, 32); /* behind its version: no fabric */
  return 0;
}

API cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) {
  *total = total_memory();
  *unused = *total - used[current] - taken_memory();
  return 0;
}
API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  Range r;
  memset(a, 0, sizeof *a);
  a->device = -1;
  if (!find_range(p, &r)) return 0; /* cudaMemoryTypeUnregistered */
  a->type = r.is_host ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  a->device = r.device;
  a->devicePointer = (void *)p;
  if (r.is_host) a->hostPointer = (void *)p;
  return 0;
}

static cudaError_t copy(void *to, const void *from, size_t bytes) {
  USE_CARD();
  if (!skips(bytes)) memmove(to, from, bytes);
  return 0;
}
API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind k) { fake_waits++; return copy(to, from, bytes); }
API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind k, cudaStream_t s) { return copy(to, from, bytes); }
API cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t bytes, cudaStream_t s) { return copy(to, from, bytes); }
API cudaError_t cudaMemcpyToSymbol(const void *a, const void *b, size_t bytes, size_t o, enum cudaMemcpyKind k) { return 0; }
API cudaError_t cudaMemset(void *p, int value, size_t bytes) {
  if (!skips(bytes)) memset(p, value, bytes);
  return 0;
}
API cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t s) { return cudaMemset(p, value, bytes); }

/* ---- devices ------------------------------------------------------------------------------ */

API cudaError_t cudaGetDeviceCount(int *n) {
  *n = device_count();
  return *n ? 0 : cudaErrorNoDevice;
}
API cudaError_t cudaGetDevice(int *device) { *device = current; return 0; }
API cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return cudaErrorInvalidDevice;
  current = device;
  return 0;
}
API cudaError_t cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return 0; }
API cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return 0; }
API cudaError_t cudaGetLastError(void) { return 0; }
API cudaError_t cudaPeekAtLastError(void) { return 0; }
API cudaError_t cudaDeviceSynchronize(void) { fake_waits++; return 0; }
API cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 1; return 0; }
API cudaError_t cudaDeviceEnablePeerAccess(int a, unsigned flags) { return 0; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
API cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int device) { snprintf(s, n, "0000:%02x:00.0", device + 1); return 0; }
API cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr name, int device) {
  int sm = arch();
  switch (name) {
    case cudaDevAttrComputeCapabilityMajor: *v = sm / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *v = sm % 10; break;
    case cudaDevAttrMultiProcessorCount: *v = sm == 90 ? 132 : sm == 89 ? 128 : 40; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = sm >= 90 ? 232448 : sm == 80 ? 166912 : sm == 75 ? 65536 : 101376; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = sm >= 90 ? 233472 : sm == 80 ? 167936 : sm == 75 ? 65536 : 102400; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = sm == 75 ? 1024 : sm == 89 ? 1536 : 2048; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: *v = 65536; break;
    case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrClockRate: *v = 1800000; break;
    default: *v = 1;
  }
  return 0;
}
API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "stand-in sm_%d", arch());
  p->major = arch() / 10;
  p->minor = arch() % 10;
  p->totalGlobalMem = total_memory();
  p->warpSize = 32;
  p->sharedMemPerBlock = 49152;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->textureAlignment = 512;
  p->l2CacheSize = 50 << 20;
  p->memoryBusWidth = 5120;
  p->asyncEngineCount = 3;
  p->pciBusID = p->uuid.bytes[0] = device + 1;
  p->concurrentKernels = p->unifiedAddressing = p->managedMemory = p->canMapHostMemory = p->cooperativeLaunch = 1;
  int v;
  cudaDeviceGetAttribute(&p->multiProcessorCount, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&p->maxThreadsPerMultiProcessor, cudaDevAttrMaxThreadsPerMultiProcessor, device);
  cudaDeviceGetAttribute(&v, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  p->sharedMemPerBlockOptin = v;
  cudaDeviceGetAttribute(&v, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  p->sharedMemPerMultiprocessor = v;
  return 0;
}

/* ---- streams, events, launches ------------------------------------------------------------ */

static void *new_handle(void) {
  static long last = 0x1000;
  return (void *)__atomic_add_fetch(&last, 64, __ATOMIC_RELAXED);
}
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { *s = new_handle(); return 0; }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) { *s = new_handle(); return 0; }
API cudaError_t cudaStreamDestroy(cudaStream_t s) { return 0; }
API cudaError_t cudaStreamQuery(cudaStream_t s) { return 0; }
API cudaError_t cudaStreamSynchronize(cudaStream_t s) { fake_waits++; return 0; }
API cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) { return 0; }
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t call, void *data, unsigned flags) { call(s, 0, data); return 0; }
API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t call, void *data) { call(data); return 0; }
API cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) { *status = cudaStreamCaptureStatusNone; return 0; }
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  return 0;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return 0; }
API cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = new_handle(); return 0; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) { *e = new_handle(); return 0; }
API cudaError_t cudaEventDestroy(cudaEvent_t e) { return 0; }
API cudaError_t cudaEventQuery(cudaEvent_t e) { return 0; }
API cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return 0; }
API cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) { return 0; }
API cudaError_t cudaEventSynchronize(cudaEvent_t e) { fake_waits++; return 0; }
API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return 0; }

API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->ptxVersion = a->binaryVersion = arch();
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  a->maxDynamicSharedSizeBytes = 49152;
  return 0;
}
API cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute name, int v) { return 0; }
API cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute name, int v, int device) { return 0; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int b, size_t s) { *n = 2; return 0; }
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned flags) { *n = 2; return 0; }
API cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) { static char room[1 << 16]; *p = room; return 0; }
API cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t t) { USE_CARD(); fake_launches++; return 0; }
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { fake_launches++; return 0; }
API cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t s, cudaStream_t t) { fake_launches++; return 0; }
API cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (cudaKernel_t)f; return 0; }

/* ---- driver ------------------------------------------------------------------------------- */

static int nothing(void) { return 0; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **p, unsigned v, unsigned long long f, enum cudaDriverEntryPointQueryResult *r) {
  void *found = dlsym(RTLD_DEFAULT, name);
  *p = found ? found : (void *)nothing;
  if (r) *r = cudaDriverEntryPointSuccess;
  return 0;
}
API CUresult cuInit(unsigned flags) { return 0; }
API CUresult cuDriverGetVersion(int *v) { *v = CUDART_VERSION; return 0; }
API CUresult cuDeviceGetCount(int *n) { *n = device_count(); return 0; }
API CUresult cuDeviceGet(CUdevice *device, int n) { *device = n; return 0; }
API CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute name, CUdevice device) { return (CUresult)cudaDeviceGetAttribute(v, (enum cudaDeviceAttr)name, device); }
API CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
API CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { *c = (CUcontext)0x10; return 0; }
API CUresult cuCtxGetCurrent(CUcontext *c) { *c = (CUcontext)0x10; return 0; }
API CUresult cuCtxSetCurrent(CUcontext c) { return 0; }
API CUresult cuGetErrorString(CUresult e, const char **s) { *s = "an error of the stand-in"; return 0; }
API CUresult cuPointerGetAttribute(void *v, CUpointer_attribute name, CUdeviceptr p) { return 0; }
API CUresult cuLaunchKernel(CUfunction f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned s, CUstream t, void **p, void **x) { fake_launches++; return 0; }

/* Looked up when PyTorch is loaded, called by nothing that these tests run: no arguments needed. */
#define UNUSED(name) API int unused_##name() __asm__(#name); int unused_##name() { return 0; }
UNUSED(cuFuncGetAttribute) UNUSED(cuFuncSetAttribute) UNUSED(cuFuncSetCacheConfig)
UNUSED(cuLaunchCooperativeKernel) UNUSED(cuLinkAddData_v2) UNUSED(cuLinkComplete) UNUSED(cuLinkCreate_v2)
UNUSED(cuModuleGetFunction) UNUSED(cuModuleLoad) UNUSED(cuModuleLoadData) UNUSED(cuModuleLoadDataEx)
UNUSED(nvmlDeviceGetNvLinkRemoteDeviceType) UNUSED(nvmlDeviceGetNvLinkRemotePciInfo_v2)
UNUSED(nvmlDeviceGetComputeRunningProcesses) UNUSED(nvmlSystemGetCudaDriverVersion_v2)
UNUSED(cuModuleUnload) UNUSED(cuOccupancyMaxActiveBlocksPerMultiprocessor) UNUSED(cuTensorMapEncodeTiled)
