/* A mux's pins outlive it: `state export CONFIG FILE` pins flows and writes them, `state import CONFIG FILE`
 * is another process that takes them over, and sends the same flows to the same hosts.
 *
 *   cc state.c -o state $(pkg-config --cflags --libs slb)
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <slb.h>

#undef NDEBUG
enum { FLOWS = 1000, SECOND = 1000000000 };

static char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    assert(file && fseek(file, 0, SEEK_END) == 0);
    *length = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(*length + 1);
    assert(bytes && fread(bytes, 1, *length, file) == *length);
    fclose(file);
    return bytes;
}

/* The last byte of the host that the mux sends a segment of a flow to. */
static uint8_t host_of(slb_mux *mux, unsigned flow, uint8_t flags) {
    uint8_t buffer[512] = {0}, *packet = buffer + 256;
    const uint8_t segment[] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0,    /* Ethernet */
                               0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0,     /* IPv4 */
                               198, 51, 100, 10, 20, 20, 20, 100,           /* client and VIP */
                               0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1,         /* TCP */
                               0x50, flags, 255, 255, 0, 0, 0, 0};
    memcpy(packet, segment, sizeof segment);
    packet[34] = (uint8_t)(4 + flow / 256), packet[35] = (uint8_t)flow;
    uint32_t sum = 0;
    for (int at = 14; at < 34; at += 2) sum += (uint32_t)packet[at] << 8 | packet[at + 1];
    sum = ~((sum & 0xffff) + (sum >> 16));
    packet[24] = (uint8_t)(sum >> 8), packet[25] = (uint8_t)sum;
    slb_frame frame = {buffer, sizeof buffer, 256, sizeof segment, 0, 0, 0};
    assert(slb_mux_process(mux, SECOND, &frame, 1, NULL) == 1);
    assert(frame.action == SLB_FORWARD);
    return buffer[frame.offset + 33];
}

int main(int count, char **arguments) {
    assert(count == 4);
    int exports = strcmp(arguments[1], "export") == 0;
    size_t length;
    char *toml = read_file(arguments[2], &length);
    slb_config *config = NULL;
    slb_snapshot *snapshot = NULL;
    slb_mux *mux = NULL;
    assert(slb_config_parse(toml, length, NULL, 0, &config) == SLB_OK);
    /* The second process has a backend less: only pins lead to it. */
    if (!exports) assert(slb_config_set_backend(config, "web-servers/vm1", 0, SLB_UP) == SLB_OK);
    assert(slb_config_snapshot(config, NULL, &snapshot) == SLB_OK);
    slb_mux_options options;
    slb_mux_options_init(&options);
    assert(slb_config_mux_options(config, &options) == SLB_OK);
    options.key[0] = exports ? 1 : 2;
    assert(slb_mux_new(snapshot, &options, &mux) == SLB_OK);

    slb_stats stats;
    if (exports) {
        FILE *file = fopen(arguments[3], "wb");
        assert(file);
        for (unsigned flow = 0; flow < FLOWS; flow++) {
            uint8_t host = host_of(mux, flow, 2);
            assert(host_of(mux, flow, 16) == host);
            assert(fputc(host, file) == host);
        }
        slb_exported exported = {0, 0, 0, 1};
        size_t records = 0;
        uint8_t into[8 * SLB_RECORD_MOST];
        while (exported.more) {
            int written = slb_mux_export(mux, exported.next, into, sizeof into, &exported);
            assert(written >= 0 && (size_t)written == exported.records);
            assert(fwrite(into, 1, exported.length, file) == exported.length);
            records += exported.records;
            host_of(mux, 0, 16); /* between two calls packets go on */
        }
        assert(records == FLOWS && fclose(file) == 0);
    } else {
        size_t bytes;
        char *file = read_file(arguments[3], &bytes);
        const uint8_t *records = (const uint8_t *)file + FLOWS;
        bytes -= FLOWS;
        slb_imported imported;
        assert(slb_mux_import(mux, SECOND, 0, 0, records, bytes - 1, &imported) == SLB_ERROR_RECORDS);
        assert(slb_mux_stats(mux, &stats) == SLB_OK && stats.flows_imported == 0);
        assert(slb_mux_import(mux, SECOND, SECOND, 0, records, bytes, &imported) == FLOWS);
        assert(imported.taken == FLOWS && imported.refused == 0);
        /* They are there already: nothing changes. */
        assert(slb_mux_import(mux, SECOND, SECOND, 0, records, bytes, &imported) == 0);
        assert(imported.refused == FLOWS);
        uint64_t sum = 0;
        for (uint8_t why = 0; why < SLB_REFUSALS; why++) {
            int is_known = strcmp(slb_refusal(why), "unknown") != 0;
            assert(is_known || imported.refused_for[why] == 0);
            sum += imported.refused_for[why];
        }
        assert(sum == FLOWS);
        unsigned at_first_host = 0;
        for (unsigned flow = 0; flow < FLOWS; flow++) {
            uint8_t host = host_of(mux, flow, 16);
            assert(host == (uint8_t)file[flow]);
            at_first_host += host == 101;
        }
        assert(at_first_host > FLOWS / 10);
        assert(slb_mux_stats(mux, &stats) == SLB_OK);
        assert(stats.flows_imported == FLOWS && stats.flows_made == 0);
        free(file);
    }
    slb_mux_free(mux);
    slb_snapshot_free(snapshot);
    slb_config_free(config);
    free(toml);
    puts("done");
    return 0;
}
