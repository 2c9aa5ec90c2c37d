/* The switch of a testbed: passes frames on when they would have arrived.
 *
 * Every host has a tap device, whose other end this program holds. A frame passes stages, each a
 * link of some rate that carries one frame after the other in the order in which they come: what
 * is special to the pair of hosts, the sender's cable, a medium that all share, the receiver's
 * cable. A stage begins with a frame when the one before has begun (cut through) and its own last
 * frame has left it, and ends no earlier than the stage before. What stands at the end is when the
 * last bit is there; the frame is handed over then, after the pair's delay. Segments that the
 * kernel has not cut into frames yet count as the frames that they would be, and pass as one.
 * Acknowledgements without data pass by frames that queue: a host keeps but a segment or two of
 * each connection in its device's queue, so that they hardly wait there, while what hosts have
 * handed over here may be a whole window. No data pass by other data: TCP would take those to be
 * lost, and send them again.
 *
 * While frames pass, and a while longer, a thread on each core turns in circles where nothing else
 * wants the core: the cores of virtual machines that have nothing to do are handed back to the
 * host, and to get them again takes up to a millisecond, for which every message, and every rank
 * that slept, would be late.
 *
 * Standard input describes the testbed, one item a line; rates are in bytes a second on the wire,
 * 0 for no limit:
 *     host PATH-OF-NETWORK-NAMESPACE DEVICE SEND-RATE RECEIVE-RATE
 *     medium RATE
 *     lane SENDER RECEIVER RATE DELAY-IN-NANOSECONDS
 * A line "ready" on standard output says that all devices are there. Host number n must have the
 * hardware address 02:ef:00:00:(n / 256):(n % 256).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MOST_HOSTS = 256, MOST_BYTES = 65536 + 256, HEADER = sizeof(struct virtio_net_hdr) };
enum { STAGES = 4 };
/* Timers wake us some 25 us late, so they are set earlier, and the rest is polled away. */
static const int64_t EARLY_NS = 25000, EXACT_NS = 3000;
static const int64_t AWAKE_NS = INT64_C(3000000000), DOZE_NS = 50000000;

typedef struct {
    double ns_per_byte; /* 0: no limit */
    int64_t free_ns;    /* when its last frame has left it */
} Link;

typedef struct {
    int64_t due_ns; /* of the next stage, or of delivery */
    int64_t end_ns; /* when the last bit leaves the stages so far */
    uint64_t order; /* of arrival: the earlier of two that are due at once goes first */
    int stage, sender, receiver, length, wire_bytes;
    unsigned char bytes[MOST_BYTES];
} Frame;

static int hosts, taps[MOST_HOSTS];
static Link sends[MOST_HOSTS], receives[MOST_HOSTS], medium, *lanes;
static int64_t *delays_ns;
static Frame **heap, *spare[4096];
static int heap_count, heap_room, spare_count;
static uint64_t arrivals;
static _Atomic int64_t last_ns; /* when a frame came */

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    fprintf(stderr, ": %s\n", strerror(errno));
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int before(const Frame *a, const Frame *b) {
    return a->due_ns < b->due_ns || (a->due_ns == b->due_ns && a->order < b->order);
}

static void push(Frame *frame) {
    if (heap_count == heap_room) {
        heap_room = heap_room ? 2 * heap_room : 1024;
        if (!(heap = realloc(heap, heap_room * sizeof *heap))) fail("no memory");
    }
    int at = heap_count++;
    for (; at && before(frame, heap[(at - 1) / 2]); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = frame;
}

static Frame *pop(void) {
    Frame *first = heap[0], *last = heap[--heap_count];
    int at = 0;
    for (int child; (child = 2 * at + 1) < heap_count; at = child) {
        if (child + 1 < heap_count && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return first;
}

static Frame *new_frame(void) {
    if (spare_count) return spare[--spare_count];
    Frame *frame = malloc(sizeof *frame);
    if (!frame) fail("no memory");
    return frame;
}

static void drop(Frame *frame) {
    if (spare_count < (int)(sizeof spare / sizeof *spare)) spare[spare_count++] = frame;
    else free(frame);
}

/* What a segment takes on the wire: every frame that it will be has all its headers. */
static int wire_bytes(const unsigned char *bytes, int length) {
    struct virtio_net_hdr header;
    memcpy(&header, bytes, HEADER);
    int size = length - HEADER;
    if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE || !header.gso_size) return size;
    int tcp = header.csum_start, headers = tcp + 4 * (bytes[HEADER + tcp + 12] >> 4);
    int frames = (size - headers + header.gso_size - 1) / header.gso_size;
    return size + (frames > 1 ? frames - 1 : 0) * headers;
}

/* Whether a frame is a TCP segment over IPv4 that acknowledges and brings nothing. */
static int acknowledges_alone(const Frame *frame) {
    enum { ETHERNET = 14, LEAST = 20, IPV4 = 0x0800, TCP = 6 };
    const unsigned char *bytes = frame->bytes + HEADER, *ip = bytes + ETHERNET;
    int size = frame->length - HEADER - ETHERNET;
    if (size < 2 * LEAST || bytes[12] * 256 + bytes[13] != IPV4 || ip[9] != TCP) return 0;
    int ip_header = 4 * (ip[0] & 15), total = ip[2] * 256 + ip[3];
    if (size < ip_header + LEAST) return 0;
    int opens_or_ends = ip[ip_header + 13] & 7; /* FIN, SYN, RST */
    return !opens_or_ends && total == ip_header + 4 * (ip[ip_header + 12] >> 4);
}

static void enter(Frame *frame, int receiver, int64_t at_ns) {
    frame->receiver = receiver;
    frame->stage = acknowledges_alone(frame) ? STAGES : 0;
    frame->due_ns = frame->end_ns = at_ns;
    if (frame->stage == STAGES) frame->due_ns += delays_ns[frame->sender * hosts + receiver];
    frame->order = arrivals++;
    push(frame);
}

/* Takes in a frame that a host has sent, or a copy of it for each of the others. */
static int take(int sender) {
    Frame *frame = new_frame();
    int length = read(taps[sender], frame->bytes, MOST_BYTES);
    if (length < HEADER + 14) {
        if (length < 0 && errno != EAGAIN && errno != EINTR) fail("a host is gone");
        drop(frame);
        return length >= 0;
    }
    int64_t at_ns = now_ns();
    atomic_store_explicit(&last_ns, at_ns, memory_order_relaxed);
    const unsigned char *to = frame->bytes + HEADER;
    frame->sender = sender;
    frame->length = length;
    frame->wire_bytes = wire_bytes(frame->bytes, length);
    int receiver = to[4] * 256 + to[5];
    if (to[0] == 2 && to[1] == 0xef && receiver < hosts && receiver != sender) {
        enter(frame, receiver, at_ns);
        return 1;
    }
    if (to[0] & 1)
        for (int other = 0; other < hosts; other++)
            if (other != sender) {
                Frame *copy = new_frame();
                memcpy(copy, frame, offsetof(Frame, bytes) + length);
                enter(copy, other, at_ns);
            }
    drop(frame);
    return 1;
}

/* The next step of a frame that is due: through a link, or to its receiver. */
static void advance(Frame *frame) {
    int pair = frame->sender * hosts + frame->receiver;
    if (frame->stage == STAGES) {
        /* A host whose device is down takes nothing, as a host that is switched off. */
        if (write(taps[frame->receiver], frame->bytes, frame->length) < 0 && errno == EBADFD)
            fail("a host is gone");
        drop(frame);
        return;
    }
    Link *stages[STAGES] = {
        &lanes[pair], &sends[frame->sender], &medium, &receives[frame->receiver]
    };
    Link *link = stages[frame->stage++];
    if (link->ns_per_byte > 0) {
        int64_t begin_ns = link->free_ns > frame->due_ns ? link->free_ns : frame->due_ns;
        link->free_ns = begin_ns + (int64_t)(frame->wire_bytes * link->ns_per_byte);
        if (frame->end_ns < link->free_ns) frame->end_ns = link->free_ns;
        frame->due_ns = begin_ns;
    }
    if (frame->stage == STAGES) frame->due_ns = frame->end_ns + delays_ns[pair];
    push(frame);
}

static int open_tap(const char *namespace, const char device[IFNAMSIZ]) {
    int home = open("/proc/self/ns/net", O_RDONLY), there = open(namespace, O_RDONLY);
    if (home < 0 || there < 0 || setns(there, CLONE_NEWNET)) fail("%s", namespace);
    int tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    memcpy(request.ifr_name, device, IFNAMSIZ);
    if (tap < 0 || ioctl(tap, TUNSETIFF, &request)) fail("/dev/net/tun");
    if (ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)) fail("offloading");
    if (setns(home, CLONE_NEWNET)) fail("/proc/self/ns/net");
    close(home);
    close(there);
    return tap;
}

static void spin(void) {
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("yield");
#endif
}

static double ns_per_byte(double bytes_s) { return bytes_s > 0 ? 1e9 / bytes_s : 0; }

static void read_testbed(void) {
    char line[4096], path[2048], device[IFNAMSIZ] = "";
    double first, second;
    long long delay_ns;
    int sender, receiver;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "host %2047s %15s %lf %lf", path, device, &first, &second) == 4) {
            if (lanes || hosts == MOST_HOSTS) fail("too many hosts, or one after a lane");
            sends[hosts].ns_per_byte = ns_per_byte(first);
            receives[hosts].ns_per_byte = ns_per_byte(second);
            taps[hosts++] = open_tap(path, device);
        } else if (sscanf(line, "medium %lf", &first) == 1) {
            medium.ns_per_byte = ns_per_byte(first);
        } else if (sscanf(line, "lane %d %d %lf %lld", &sender, &receiver, &first, &delay_ns) == 4) {
            if (!lanes) {
                lanes = calloc((size_t)hosts * hosts, sizeof *lanes);
                delays_ns = calloc((size_t)hosts * hosts, sizeof *delays_ns);
            }
            if (!lanes || !delays_ns || sender < 0 || receiver < 0 || sender >= hosts ||
                receiver >= hosts)
                fail("not a pair of hosts");
            lanes[sender * hosts + receiver].ns_per_byte = ns_per_byte(first);
            delays_ns[sender * hosts + receiver] = delay_ns;
        } else {
            errno = EINVAL;
            fail("%s", line);
        }
    }
    if (!lanes) {
        lanes = calloc((size_t)hosts * hosts + 1, sizeof *lanes);
        delays_ns = calloc((size_t)hosts * hosts + 1, sizeof *delays_ns);
        if (!lanes || !delays_ns) fail("no memory");
    }
}

/* Keeps a core from being handed back to a host, at a cost to nobody who wants it. */
static void *keep_awake(void *core) {
    struct sched_param last = {.sched_priority = 0};
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET((int)(intptr_t)core, &cores);
    if (sched_setscheduler(0, SCHED_IDLE, &last) || sched_setaffinity(0, sizeof cores, &cores))
        return NULL;
    for (;;) {
        int64_t idle_ns = now_ns() - atomic_load_explicit(&last_ns, memory_order_relaxed);
        if (idle_ns > AWAKE_NS) {
            struct timespec doze = {0, DOZE_NS};
            nanosleep(&doze, NULL);
        } else {
            for (int turn = 0; turn < 1000; turn++) spin();
        }
    }
}

static void start_keepers(void) {
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores)) return;
    last_ns = now_ns();
    /* Where the kernel shares the cores out among sessions, this one is to have what is left. */
    FILE *share = fopen("/proc/self/autogroup", "w");
    if (share) {
        fputs("19", share);
        fclose(share);
    }
    for (int core = 0; core < CPU_SETSIZE; core++) {
        pthread_t thread;
        if (CPU_ISSET(core, &cores))
            pthread_create(&thread, NULL, keep_awake, (void *)(intptr_t)core);
    }
}

int main(void) {
    read_testbed();
    start_keepers();
    /* Before all ranks and the threads that move their messages; where that is not allowed, not. */
    struct sched_param urgent = {.sched_priority = 10};
    sched_setscheduler(0, SCHED_FIFO, &urgent);
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    mlockall(MCL_CURRENT | MCL_FUTURE);
    signal(SIGHUP, SIG_IGN);
    printf("ready\n");
    fflush(stdout);
    fclose(stdout);

    struct pollfd polled[MOST_HOSTS];
    for (int host = 0; host < hosts; host++) polled[host] = (struct pollfd){taps[host], POLLIN, 0};
    for (;;) {
        struct timespec wait, *until = NULL;
        if (heap_count) {
            int64_t left_ns = heap[0]->due_ns - EARLY_NS - now_ns();
            if (left_ns < 0) left_ns = 0;
            wait = (struct timespec){left_ns / 1000000000, left_ns % 1000000000};
            until = &wait;
        }
        if (ppoll(polled, hosts, until, NULL) < 0 && errno != EINTR) fail("waiting");
        for (int host = 0; host < hosts; host++)
            if (polled[host].revents & POLLIN) for (int count = 0; count < 64 && take(host); count++);
        while (heap_count && heap[0]->due_ns <= now_ns() + EXACT_NS) advance(pop());
    }
}
