/* A proxy on two threads: each has a queue and half of the connections, and hands packets of the other half over.
 *
 *   cc workers.c -o workers $(pkg-config --cflags --static --libs slb) -pthread
 */
#include <pthread.h>
#include <slb.h>
#include <stdio.h>
#include <string.h>

enum { WORKERS = 2, CLIENTS = 64, ROOM = 256, SECOND = 1000000000, FRONT = 0, BACK = 1 };

typedef struct {
    slb_frame frame;
    uint8_t bytes[128 + SLB_HEADROOM];
} packet;

/* What comes by a worker's queue, and what other workers hand to it. */
typedef struct {
    pthread_mutex_t lock;
    packet *waiting[ROOM];
    size_t count;
} queue;

typedef struct {
    slb_steering steering;
    slb_proxy *proxy;
    queue queue;
    packet *done[ROOM];
    size_t count, handed;
} worker;

static slb_snapshot *snapshot;
static worker workers[WORKERS];
static packet packets[CLIENTS];

static void put(queue *to, packet *one) {
    pthread_mutex_lock(&to->lock);
    to->waiting[to->count++] = one;
    pthread_mutex_unlock(&to->lock);
}

/* Processes what waits: the packets of this worker's connections, and hands the others to their owners. */
static void *work(void *context) {
    worker *own = context;
    packet *taken[ROOM];
    pthread_mutex_lock(&own->queue.lock);
    size_t count = own->queue.count;
    memcpy(taken, own->queue.waiting, sizeof taken);
    own->queue.count = 0;
    pthread_mutex_unlock(&own->queue.lock);
    for (size_t i = 0; i < count; i++) {
        uint16_t owner;
        if (slb_steer(snapshot, &own->steering, &taken[i]->frame, 1, &owner) < 0) return "slb_steer";
        if (owner != own->steering.own) {
            own->handed++;
            put(&workers[owner].queue, taken[i]);
            continue;
        }
        if (slb_proxy_process(own->proxy, SECOND, &taken[i]->frame, 1, NULL) < 0) return "slb_proxy_process";
        own->done[own->count++] = taken[i];
    }
    return NULL;
}

/* All workers at once, until nothing waits: a packet is handed over once at most. */
static const char *run(void) {
    const char *error = NULL;
    for (int round = 0; round < 2; round++) {
        pthread_t threads[WORKERS];
        for (int i = 0; i < WORKERS; i++) pthread_create(&threads[i], NULL, work, &workers[i]);
        for (int i = 0; i < WORKERS; i++) {
            void *said;
            pthread_join(threads[i], &said);
            if (said) error = said;
        }
    }
    return error;
}

/* A TCP segment between 198.51.100.N:40000 and the other end, without a checksum of its own. */
static void segment(packet *one, const uint8_t from[4], const uint8_t to[4], uint16_t from_port, uint16_t to_port,
                    uint8_t flags, uint16_t port) {
    uint8_t bytes[54] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6};
    memcpy(bytes + 26, from, 4), memcpy(bytes + 30, to, 4);
    bytes[34] = (uint8_t)(from_port >> 8), bytes[35] = (uint8_t)from_port;
    bytes[36] = (uint8_t)(to_port >> 8), bytes[37] = (uint8_t)to_port;
    bytes[41] = 1, bytes[45] = flags == 0x12 ? 2 : 0, bytes[46] = 0x50, bytes[47] = flags, bytes[48] = 0xff;
    uint32_t sum = 0;
    for (int at = 14; at < 34; at += 2) sum += (uint32_t)bytes[at] << 8 | bytes[at + 1];
    sum = ~((sum & 0xffff) + (sum >> 16));
    bytes[24] = (uint8_t)(sum >> 8), bytes[25] = (uint8_t)sum;
    memcpy(one->bytes + SLB_HEADROOM, bytes, sizeof bytes);
    slb_frame frame = {one->bytes, sizeof one->bytes, SLB_HEADROOM, sizeof bytes, port, 0, 0};
    one->frame = frame;
}

int main(void) {
    const uint8_t vip[4] = {20, 20, 20, 100}, server[4] = {10, 10, 1, 11};
    static const char toml[] = "[node]\nrole = \"proxy\"\n[[frontend]]\nname = \"web\"\naddress = \"20.20.20.100\"\n"
                               "[[pool]]\nname = \"p\"\nbackends = [{ name = \"one\", address = \"10.10.1.11\" }]\n"
                               "[[rule]]\nname = \"http\"\nfrontend = \"web\"\npool = \"p\"\nprotocol = \"tcp\"\n"
                               "frontend_port = 80\nbackend_port = 8080\n";
    slb_config *config;
    char text[200];
    if (slb_config_parse(toml, sizeof toml - 1, text, sizeof text, &config) < 0) return puts(text), 1;
    if (slb_config_snapshot(config, NULL, &snapshot) < 0 || slb_snapshot_spreads(snapshot) != 1) return 1;
    slb_nat_options options;
    slb_nat_options_init(&options);
    options.key[0] = 0x0123456789abcdef; /* yours: 128 bits, random and secret; the same for all workers */
    options.connections = 1024;
    for (uint16_t i = 0; i < WORKERS; i++) {
        slb_steering steering = {{options.key[0], options.key[1]}, WORKERS, i};
        workers[i].steering = steering;
        pthread_mutex_init(&workers[i].queue.lock, NULL);
        if (slb_proxy_new(snapshot, &options, &workers[i].proxy) < 0) return 1;
    }
    /* SYNs of all clients come by the first worker's queue, and all answers by the second one's. */
    for (uint8_t i = 0; i < CLIENTS; i++) {
        const uint8_t client[4] = {198, 51, 100, i};
        segment(&packets[i], client, vip, 40000, 80, 0x02, FRONT);
        put(&workers[0].queue, &packets[i]);
    }
    const char *error = run();
    for (uint8_t i = 0; i < CLIENTS; i++) {
        const uint8_t client[4] = {198, 51, 100, i};
        if (packets[i].frame.action != SLB_FORWARD || packets[i].frame.port != BACK) return 1;
        segment(&packets[i], server, client, 8080, 40000, 0x12, BACK);
        put(&workers[1].queue, &packets[i]);
    }
    if (!error) error = run();
    if (error) return puts(error), 1;
    size_t answered = 0;
    for (int i = 0; i < CLIENTS; i++) {
        const uint8_t *packet = packets[i].bytes + packets[i].frame.offset;
        answered += packets[i].frame.action == SLB_FORWARD && packets[i].frame.port == FRONT && !memcmp(packet + 26, vip, 4);
    }
    printf("%zu of %d answered from the VIP; handed over: %zu and %zu\n", answered, CLIENTS, workers[0].handed,
           workers[1].handed);
    for (int i = 0; i < WORKERS; i++) slb_proxy_free(workers[i].proxy);
    slb_snapshot_free(snapshot), slb_config_free(config);
    return answered != CLIENTS;
}
