/* A mux from capture to capture: what `slb replay` does, with libpcap.
 *
 *   cc mux.c -o mux $(pkg-config --cflags --libs slb libpcap)
 *   ./mux web.toml in.pcap out.pcap
 */
#include <pcap/pcap.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <slb.h>

enum { BUFFER = 1 << 19, HEADROOM = 128, FRAME = 262144 };
static const uint64_t MILLISECOND = 1000000;

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static int check(const char *what, int result) {
    if (result < 0) fail(what, slb_strerror(result));
    return result;
}

/* Puts a packet into a buffer as an Ethernet frame; gives its length, or 0 where that cannot be. */
static uint32_t frame_of(int link, const uint8_t *data, uint32_t length, uint8_t *to) {
    uint8_t header[14] = {0};
    uint32_t skip = 0;
    const uint8_t *type = NULL;
    static const uint8_t ipv4[2] = {0x08, 0x00}, ipv6[2] = {0x86, 0xdd};
    if (link == DLT_EN10MB) {
        memcpy(to, data, length);
        return length;
    }
    if (link == DLT_RAW || link == DLT_IPV4 || link == DLT_IPV6 || link == DLT_NULL || link == DLT_LOOP) {
        skip = link == DLT_NULL || link == DLT_LOOP ? 4 : 0;
        if (length <= skip) return 0;
        type = data[skip] >> 4 == 4 ? ipv4 : data[skip] >> 4 == 6 ? ipv6 : NULL;
    } else if (link == DLT_LINUX_SLL && length >= 16) {
        skip = 16, type = data + 14;
        if (data[4] == 0 && data[5] == 6) memcpy(header + 6, data + 6, 6);
    } else if (link == DLT_LINUX_SLL2 && length >= 20) {
        skip = 20, type = data;
        if (data[11] == 6) memcpy(header + 6, data + 12, 6);
    }
    if (type == NULL) return 0;
    memcpy(header + 12, type, 2);
    memcpy(to, header, 14);
    memcpy(to + 14, data + skip, length - skip);
    return 14 + length - skip;
}

static slb_mux *make(const char *path, slb_snapshot **snapshot) {
    static char toml[1 << 20], faults[4096];
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail(path, "cannot be read");
    size_t length = fread(toml, 1, sizeof toml, file);
    fclose(file);
    slb_config *config;
    if (slb_config_parse(toml, length, faults, sizeof faults, &config) < 0) fail(path, faults);
    slb_mux_options options;
    slb_mux_options_init(&options);
    check("options", slb_config_mux_options(config, &options));
    FILE *urandom = fopen("/dev/urandom", "rb");
    if (urandom == NULL || fread(options.key, sizeof options.key, 1, urandom) != 1)
        fail("/dev/urandom", "cannot be read");
    fclose(urandom);
    check("snapshot", slb_config_snapshot(config, NULL, snapshot));
    slb_config_free(config);
    slb_mux *mux;
    check("mux", slb_mux_new(*snapshot, &options, &mux));
    return mux;
}

int main(int argc, char **argv) {
    if (argc != 4) fail(argv[0], "CONFIGURATION IN OUT");
    char why[PCAP_ERRBUF_SIZE];
    pcap_t *in = pcap_open_offline_with_tstamp_precision(argv[2], PCAP_TSTAMP_PRECISION_NANO, why);
    if (in == NULL) fail(argv[2], why);
    pcap_t *format = pcap_open_dead_with_tstamp_precision(DLT_EN10MB, 1 << 20, PCAP_TSTAMP_PRECISION_NANO);
    pcap_dumper_t *out = pcap_dump_open(format, argv[3]);
    if (out == NULL) fail(argv[3], pcap_geterr(format));

    slb_snapshot *snapshot;
    slb_mux *mux = make(argv[1], &snapshot);
    uint8_t *memory = malloc((size_t)SLB_BURST * BUFFER);
    if (memory == NULL) fail("memory", "there is too little");
    slb_frame frames[SLB_BURST];
    struct pcap_pkthdr headers[SLB_BURST], *header;
    const uint8_t *data;
    uint64_t now = 0, first = 0;
    size_t count = 0;
    int next = 1;
    for (int more = 1; more || count > 0;) {
        uint64_t at = 0;
        if (more && (more = (next = pcap_next_ex(in, &header, &data)) == 1))
            at = (uint64_t)header->ts.tv_sec * 1000000000 + (uint64_t)header->ts.tv_usec;
        /* Packets of one burst are no further apart than a millisecond. */
        if (count > 0 && (!more || count == SLB_BURST || at > first + MILLISECOND)) {
            check("process", slb_mux_process(mux, now, frames, count, NULL));
            for (size_t i = 0; i < count; i++) {
                headers[i].caplen = headers[i].len = frames[i].length;
                if (frames[i].action == SLB_FORWARD || frames[i].action == SLB_REPLY)
                    pcap_dump((u_char *)out, &headers[i], frames[i].buffer + frames[i].offset);
            }
            count = 0;
        }
        if (!more) continue;
        uint8_t *buffer = memory + count * BUFFER;
        uint32_t length = header->caplen <= FRAME ? frame_of(pcap_datalink(in), data, header->caplen, buffer + HEADROOM) : 0;
        if (length == 0) continue;
        frames[count] = (slb_frame){buffer, BUFFER, HEADROOM, length, 0, 0, 0};
        headers[count] = *header;
        if (count == 0) {
            now = at > now ? at : now; /* a clock does not run backwards */
            first = now;
        }
        count++;
    }

    slb_stats stats;
    check("stats", slb_mux_stats(mux, &stats));
    printf("%llu in, %llu forwarded, %llu replied, %llu dropped\n", (unsigned long long)stats.received,
           (unsigned long long)stats.forwarded, (unsigned long long)stats.replied,
           (unsigned long long)stats.dropped);
    pcap_dump_close(out);
    if (next == PCAP_ERROR) fail(argv[2], pcap_geterr(in));
    pcap_close(format);
    pcap_close(in);
    free(memory);
    slb_mux_free(mux);
    return check("free", slb_snapshot_free(snapshot));
}
