/* A mux of two servers, one SYN through it, and a server that is drained.
 *
 *   cc first.c -o first $(pkg-config --cflags --static --libs slb)
 */
#include <slb.h>
#include <stdio.h>
#include <string.h>

/* A SYN from 198.51.100.10:50000 to 20.20.20.100:80. */
static const uint8_t SYN[] = {
    2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0xe8, 0x1a, 198, 51,
    100, 10, 20, 20, 20, 100, 0xc3, 0x50, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0};

static void see(void *context, size_t frame, const char *label, const char *text) {
    (void)context, (void)frame;
    printf("%-10s %s\n", label, text);
}

int main(void) {
    slb_capacity capacity = {.frontends = 1, .pools = 1, .backends = 2, .rules = 1};
    slb_underlay underlay = {.ipv4 = {4, {172, 16, 0, 11}}};
    slb_frontend web = {.name = "web", .address = {4, {20, 20, 20, 100}}};
    slb_pool servers = {.name = "servers", .vni = 5001};
    slb_backend one = {.name = "one", .address = {4, {10, 0, 0, 1}}, .host = {4, {172, 16, 1, 1}}};
    slb_backend two = {.name = "two", .address = {4, {10, 0, 0, 2}}, .host = {4, {172, 16, 1, 2}}};
    slb_rule http = {.name = "http", .frontend_port = 80};
    slb_builder *builder;
    if (slb_builder_new(&capacity, &builder) < 0) return 1;
    if (slb_builder_underlay(builder, &underlay) < 0 || slb_builder_frontend(builder, &web) < 0 ||
        slb_builder_pool(builder, &servers) < 0 || slb_builder_backend(builder, 0, &one) < 0 ||
        slb_builder_backend(builder, 0, &two) < 0 || slb_builder_rule(builder, &http) < 0) {
        fprintf(stderr, "%s\n", slb_builder_error(builder));
        return 1;
    }
    slb_snapshot *first, *drained;
    slb_mux_options options;
    slb_mux *mux;
    slb_mux_options_init(&options);
    options.key[0] = 0x0123456789abcdef; /* yours: 128 bits, random and secret */
    if (slb_snapshot_new(builder, NULL, &first) < 0 || slb_mux_new(first, &options, &mux) < 0) return 1;

    uint8_t buffer[256];
    memcpy(buffer + SLB_HEADROOM, SYN, sizeof SYN);
    slb_frame frame = {.buffer = buffer, .capacity = sizeof buffer, .offset = SLB_HEADROOM, .length = sizeof SYN};
    slb_mux_process_observed(mux, 1000000000, &frame, 1, see, NULL); /* else slb_mux_process */
    if (frame.action != SLB_FORWARD) return 1;

    slb_builder_set_backend(builder, 0, 0, 0, SLB_DRAINING);
    if (slb_snapshot_new(builder, first, &drained) < 0 || slb_mux_install(mux, drained, NULL) < 0) return 1;
    slb_stats stats;
    slb_mux_stats(mux, &stats);
    printf("%llu forwarded\n", (unsigned long long)stats.forwarded);
    return slb_mux_free(mux) | slb_snapshot_free(first) | slb_snapshot_free(drained) | slb_builder_free(builder);
}
