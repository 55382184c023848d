/* GPT-2 in C, and the glue by which gpt-verify asks it.

   cc -O2 -o gpt2 gpt2.c -lm
   gpt-verify run --port "process=./gpt2 {huggingface}"
*/
#include <ctype.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what) { fprintf(stderr, "%s\n", what); exit(1); }

static char *whole(const char *directory, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    char *data = malloc(size + 1);
    rewind(file);
    if (!data || fread(data, 1, size, file) != (size_t)size) fail(path);
    data[size] = 0;
    fclose(file);
    return data;
}

/* ---- the weights: safetensors is a length, a JSON header, and the data ---- */

static char *header;
static const char *data;

static const float *tensor(int layer, const char *name) {
    char key[64];
    if (layer < 0) snprintf(key, sizeof key, "\"transformer.%s\"", name);
    else snprintf(key, sizeof key, "\"transformer.h.%d.%s\"", layer, name);
    const char *at = strstr(header, key);
    if (!at) fail(key);
    return (const float *)(data + strtoull(strstr(at, "data_offsets\":[") + 15, NULL, 10));
}

static int number(const char *json, const char *key) {
    const char *at = strstr(json, key);
    if (!at) fail(key);
    return atoi(strchr(at, ':') + 1);
}

/* ---- the model ---- */

static int V, P, D, H, L;

static void layer_norm(float *out, const float *x, const float *g, const float *b) {
    double mean = 0, variance = 0;
    for (int d = 0; d < D; d++) mean += x[d] / (double)D;
    for (int d = 0; d < D; d++) variance += (x[d] - mean) * (x[d] - mean) / D;
    double scale = 1 / sqrt(variance + 1e-5);
    for (int d = 0; d < D; d++) out[d] = (float)((x[d] - mean) * scale) * g[d] + b[d];
}

static void linear(float *out, const float *x, const float *w, const float *b, int in, int n) {
    memcpy(out, b, n * sizeof *out);
    for (int i = 0; i < in; i++)
        for (int j = 0; j < n; j++) out[j] += x[i] * w[(size_t)i * n + j];
}

static float gelu(float x) {
    return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
}

/* Position t of one head; keys and values of all positions up to it are in qkv[T, 3 D]. */
static void attend(float *out, const float *qkv, int t, int head) {
    int K = D / H;
    float score[t + 1], largest = -INFINITY, total = 0;
    const float *q = qkv + (size_t)t * 3 * D + head * K;
    for (int s = 0; s <= t; s++) {
        const float *k = qkv + (size_t)s * 3 * D + D + head * K;
        score[s] = 0;
        for (int i = 0; i < K; i++) score[s] += q[i] * k[i];
        score[s] /= sqrtf(K);
        if (score[s] > largest) largest = score[s];
    }
    for (int s = 0; s <= t; s++) total += score[s] = expf(score[s] - largest);
    for (int i = 0; i < K; i++) out[head * K + i] = 0;
    for (int s = 0; s <= t; s++)
        for (int i = 0; i < K; i++)
            out[head * K + i] += score[s] / total * qkv[(size_t)s * 3 * D + 2 * D + head * K + i];
}

static void forward(const int *tokens, int T, float *logits) {
    float *x = malloc(sizeof(float) * T * D), *qkv = malloc(sizeof(float) * T * 3 * D);
    float normed[D], mixed[D], out[D], inner[4 * D];
    const float *wte = tensor(-1, "wte.weight"), *wpe = tensor(-1, "wpe.weight");
    for (int t = 0; t < T; t++)
        for (int d = 0; d < D; d++)
            x[t * D + d] = wte[(size_t)tokens[t] * D + d] + wpe[t * D + d];
    for (int l = 0; l < L; l++) {
        for (int t = 0; t < T; t++) {
            layer_norm(normed, x + t * D, tensor(l, "ln_1.weight"), tensor(l, "ln_1.bias"));
            linear(qkv + (size_t)t * 3 * D, normed, tensor(l, "attn.c_attn.weight"),
                   tensor(l, "attn.c_attn.bias"), D, 3 * D);
        }
        for (int t = 0; t < T; t++) {
            for (int h = 0; h < H; h++) attend(mixed, qkv, t, h);
            linear(out, mixed, tensor(l, "attn.c_proj.weight"), tensor(l, "attn.c_proj.bias"), D, D);
            for (int d = 0; d < D; d++) x[t * D + d] += out[d];
            layer_norm(normed, x + t * D, tensor(l, "ln_2.weight"), tensor(l, "ln_2.bias"));
            linear(inner, normed, tensor(l, "mlp.c_fc.weight"), tensor(l, "mlp.c_fc.bias"), D, 4 * D);
            for (int f = 0; f < 4 * D; f++) inner[f] = gelu(inner[f]);
            linear(out, inner, tensor(l, "mlp.c_proj.weight"), tensor(l, "mlp.c_proj.bias"), 4 * D, D);
            for (int d = 0; d < D; d++) x[t * D + d] += out[d];
        }
    }
    for (int t = 0; t < T; t++) {
        layer_norm(normed, x + t * D, tensor(-1, "ln_f.weight"), tensor(-1, "ln_f.bias"));
        for (int v = 0; v < V; v++) {
            float sum = 0;
            for (int d = 0; d < D; d++) sum += normed[d] * wte[(size_t)v * D + d];
            logits[(size_t)t * V + v] = sum;
        }
    }
    free(x);
    free(qkv);
}

/* ---- the glue: {"tokens": [[1, 2], [3, 4]]} comes in, a .npy array goes out ---- */

static int question(const char *line, int *tokens, int *T) {
    int n = 0, rows = 0, depth = 0;
    for (const char *c = line; *c; c++) {
        if (*c == '[') depth++;
        if (*c == ']' && depth-- == 2) rows++;
        if (isdigit(*c)) tokens[n++] = strtol(c, (char **)&c, 10), c--;
    }
    *T = rows ? n / rows : 0;
    return rows;
}

static void answer(const float *logits, int B, int T) {
    char head[118];
    int n = snprintf(head, sizeof head, "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d, %d)}", B, T, V);
    memset(head + n, ' ', sizeof head - n);
    head[117] = '\n';
    fwrite("\x93NUMPY\x01\x00\x76\x00", 1, 10, stdout); /* 0x76 is 118, the length of head */
    fwrite(head, 1, sizeof head, stdout);
    fwrite(logits, sizeof *logits, (size_t)B * T * V, stdout);
    fflush(stdout);
}

static void serve(void) {
    char *line = NULL;
    size_t size = 0;
    while (getline(&line, &size, stdin) > 0) {
        int *tokens = malloc(sizeof(int) * size), T, B = question(line, tokens, &T);
        if (T < 1 || T > P) { puts("{\"error\": \"too many tokens, or none\"}"); fflush(stdout); continue; }
        float *logits = malloc(sizeof(float) * B * T * V);
        for (int b = 0; b < B; b++) forward(tokens + b * T, T, logits + (size_t)b * T * V);
        answer(logits, B, T);
        free(logits);
        free(tokens);
    }
}

int main(int count, char **words) {
    if (count != 2) fail("usage: gpt2 DIRECTORY");
    char *config = whole(words[1], "config.json"), *file = whole(words[1], "model.safetensors");
    uint64_t length;
    memcpy(&length, file, 8);
    header = file + 8;
    data = header + length;
    V = number(config, "\"vocab_size\""), P = number(config, "\"n_positions\"");
    D = number(config, "\"n_embd\""), H = number(config, "\"n_head\""), L = number(config, "\"n_layer\"");
    serve();
    return 0;
}
