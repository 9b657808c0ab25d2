/* cuDNN, as its frontend library uses it: every graph has one engine without choices and without workspace, whose
   plans do nothing. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TYPE_INT64 = 3, TYPE_INT32 = 23 }; /* of cudnnBackendAttributeType_t */

size_t cudnnGetVersion(void) { return 91400; }
const char *cudnnGetErrorString(int error) { return "an error of the stand-in for cuDNN"; }

int cudnnCreate(void **handle) {
    *handle = (void *)16;
    return 0;
}

int cudnnBackendCreateDescriptor(int type, void **descriptor) {
    *descriptor = malloc(1);
    return *descriptor == NULL;
}
int cudnnBackendDestroyDescriptor(void *descriptor) {
    free(descriptor);
    return 0;
}

/* One element of everything. Numbers are 0; the caller's descriptors stay as they are. */
int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t wanted, int64_t *count, void *elements) {
    if (count != NULL)
        *count = 1;
    if (elements != NULL && wanted > 0 && (type == TYPE_INT64 || type == TYPE_INT32))
        memset(elements, 0, type == TYPE_INT64 ? sizeof(int64_t) : sizeof(int32_t));
    return 0;
}
