#include "kernel.h"

void kernel(double a[restrict R][Q][P], double c4[restrict P][P], double row[restrict P]) {
    for (int r = 0; r < R; r++)
        for (int q = 0; q < Q; q++) {
            for (int p = 0; p < P; p++) {
                row[p] = 0;
                for (int s = 0; s < P; s++) row[p] += a[r][q][s] * c4[s][p];
            }
            for (int p = 0; p < P; p++) a[r][q][p] = row[p];
        }
}
