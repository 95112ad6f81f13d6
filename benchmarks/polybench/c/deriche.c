#include "kernel.h"

void kernel(double image[restrict W][H], double alpha, double result[restrict W][H], double forth[restrict W][H],
            double back[restrict W][H]) {
    double e = exp(-alpha), k = SQUARE(1 - e) / (1 + 2 * alpha * e - e * e);
    double a1 = k, a2 = k * e * (alpha - 1), a3 = k * e * (alpha + 1), a4 = -k * e * e;
    double b1 = 2 * e, b2 = -e * e;
    for (int i = 0; i < W; i++) {
        double x1 = 0, y1 = 0, y2 = 0;
        for (int j = 0; j < H; j++) {
            forth[i][j] = a1 * image[i][j] + a2 * x1 + b1 * y1 + b2 * y2;
            x1 = image[i][j];
            y2 = y1;
            y1 = forth[i][j];
        }
    }
    for (int i = 0; i < W; i++) {
        double x1 = 0, x2 = 0, y1 = 0, y2 = 0;
        for (int j = H - 1; j >= 0; j--) {
            back[i][j] = a3 * x1 + a4 * x2 + b1 * y1 + b2 * y2;
            x2 = x1;
            x1 = image[i][j];
            y2 = y1;
            y1 = back[i][j];
        }
    }
    for (int i = 0; i < W; i++)
        for (int j = 0; j < H; j++) result[i][j] = forth[i][j] + back[i][j];
    for (int j = 0; j < H; j++) {
        double x1 = 0, y1 = 0, y2 = 0;
        for (int i = 0; i < W; i++) {
            forth[i][j] = a1 * result[i][j] + a2 * x1 + b1 * y1 + b2 * y2;
            x1 = result[i][j];
            y2 = y1;
            y1 = forth[i][j];
        }
    }
    for (int j = 0; j < H; j++) {
        double x1 = 0, x2 = 0, y1 = 0, y2 = 0;
        for (int i = W - 1; i >= 0; i--) {
            back[i][j] = a3 * x1 + a4 * x2 + b1 * y1 + b2 * y2;
            x2 = x1;
            x1 = result[i][j];
            y2 = y1;
            y1 = back[i][j];
        }
    }
    for (int i = 0; i < W; i++)
        for (int j = 0; j < H; j++) result[i][j] = forth[i][j] + back[i][j];
}
