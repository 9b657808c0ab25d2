/* Products with nothing in their results. */
int cublasCreate_v2(void **handle) {
    *handle = (void *)16;
    return 0;
}
int cublasGetMathMode(void *handle, int *mode) {
    *mode = 0;
    return 0;
}
