/* cuBLAS and cuFFT that count their launches and do nothing.

   Preloaded only where native code is timed: then PyTorch calls the libraries itself, and the real
   ones need a card to start. */

#include <stddef.h>

#define API __attribute__((visibility("default")))
#define NOTHING(name) API int name() { return 0; }
#define LAUNCH(name) API int name() { fake_launches++; return 0; }

extern long fake_launches;
static void *new_handle(void) { static long last = 0x100; return (void *)(last += 64); }

NOTHING(cublasDestroy_v2) NOTHING(cublasSetStream_v2) NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSetMathMode) NOTHING(cublasSetPointerMode_v2) NOTHING(cublasSetSmCountTarget)
NOTHING(cublasLtMatmulDescDestroy) NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy) NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy) NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cufftSetAutoAllocation) NOTHING(cufftSetStream) NOTHING(cufftSetWorkArea) NOTHING(cufftDestroy)

LAUNCH(cublasGemmEx) LAUNCH(cublasGemmStridedBatchedEx) LAUNCH(cublasSgemm_v2)
LAUNCH(cublasSgemmStridedBatched) LAUNCH(cublasSgemmEx) LAUNCH(cublasDgemm_v2)
LAUNCH(cublasDgemmStridedBatched) LAUNCH(cublasSgemv_v2) LAUNCH(cublasDgemv_v2)
LAUNCH(cublasSdot_v2) LAUNCH(cublasDdot_v2) LAUNCH(cublasDotEx) LAUNCH(cublasLtMatmul) LAUNCH(cufftXtExec)

API int cublasCreate_v2(void **handle) { *handle = new_handle(); return 0; }
API int cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }
API int cublasGetPointerMode_v2(void *h, int *mode) { *mode = 0; return 0; }
API size_t cublasLtGetVersion(void) { return 130000; }
API int cublasLtMatmulDescCreate(void **p) { *p = new_handle(); return 0; }
API int cublasLtMatmulPreferenceCreate(void **p) { *p = new_handle(); return 0; }
API int cublasLtMatrixLayoutCreate(void **p) { *p = new_handle(); return 0; }
API int cublasLtMatmulAlgoGetHeuristic(void *l, void *d, void *a, void *b, void *c, void *e, void *p, int n, void *r, int *found) { *found = 1; return 0; }
API int cufftCreate(int *plan) { *plan = 1; return 0; }
API int cufftXtMakePlanMany(int plan, int rank, long long *n, long long *i, long long is, long long id, int it, long long *o, long long os, long long od, int ot, long long batch, size_t *work, int type) { *work = 0; return 0; }
