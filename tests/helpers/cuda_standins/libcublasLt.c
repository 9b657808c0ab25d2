/* Products with nothing in their results. */
int cublasLtCreate(void **handle) {
    *handle = (void *)16;
    return 0;
}
