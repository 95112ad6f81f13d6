#include "kernel.h"

void kernel(double r[restrict N], double result[restrict N], double z[restrict N]) {
    double alpha = -r[0], beta = 1;
    result[0] = -r[0];
    for (int k = 1; k < N; k++) {
        double s = 0;
        beta *= 1 - SQUARE(alpha);
        for (int i = 0; i < k; i++) s += r[k - i - 1] * result[i];
        alpha = -(r[k] + s) / beta;
        for (int i = 0; i < k; i++) z[i] = result[i] + alpha * result[k - i - 1];
        for (int i = 0; i < k; i++) result[i] = z[i];
        result[k] = alpha;
    }
}
