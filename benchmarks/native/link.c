/* A long link between two network namespaces: delay, rate, a queue that overflows, losses.
 *
 *   link NAMESPACE-A NAMESPACE-B MTU QUEUE-BYTES SEED
 *
 * Both namespaces get a device "link0"; what enters one leaves the other. Each direction has
 * its own rate and drop-tail queue. Standard input takes lines, so that the link can change
 * while it is in use, and the program ends when standard input does:
 *
 *   RATE-BITS-PER-S ONE-WAY-DELAY-US LOSS-PER-MILLION
 *
 * Packets towards B (the upload) are lost at random; those towards A (its answers) are not.
 * A line "?" makes it print what it has seen as JSON.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { RING = 1 << 17, PACKET_MAX = 9216, BURST = 256 };

typedef struct { char *data; int size; int64_t due_ns; } Packet;

/* One direction. Packets leave the queue at the link's rate, then travel for its delay; the
 * order never changes, so one ring holds both those that wait and those that travel. */
typedef struct {
    int out;
    Packet *ring;
    unsigned first, last;
    int64_t free_at_ns; /* when the line has sent all that was taken */
    long passed, dropped, lost;
    long long bytes;
} Way;

static struct { double ns_per_byte; int64_t delay_ns; uint32_t loss_mark; long queue; } line;
static uint64_t random_state;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint32_t draw(void) { /* xorshift64*: the same losses for the same seed */
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (uint32_t)((random_state * 2685821657736338717ull) >> 32);
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int open_device(const char *namespace, int mtu) {
    char path[256];
    struct ifreq wanted = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    snprintf(path, sizeof path, "/run/netns/%s", namespace);
    int home = open("/proc/self/ns/net", O_RDONLY), there = open(path, O_RDONLY);
    if (there < 0 || setns(there, CLONE_NEWNET)) fail(path);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    strcpy(wanted.ifr_name, "link0");
    if (device < 0 || ioctl(device, TUNSETIFF, &wanted)) fail("/dev/net/tun");
    int any = socket(AF_INET, SOCK_DGRAM, 0);
    wanted.ifr_mtu = mtu;
    if (ioctl(any, SIOCSIFMTU, &wanted)) fail("MTU");
    close(any);
    setns(home, CLONE_NEWNET);
    close(home);
    close(there);
    return device;
}

static int64_t leaves_at(Way *way, int size, int64_t now) {
    int64_t begin = way->free_at_ns > now ? way->free_at_ns : now;
    return begin + (int64_t)(line.ns_per_byte * size);
}

static void take(Way *way, const char *data, int size, int64_t now, int may_lose) {
    double waiting = (double)(way->free_at_ns - now) / line.ns_per_byte;
    if (way->last - way->first == RING || waiting + size > (double)line.queue) {
        way->dropped++;
        return;
    }
    way->free_at_ns = leaves_at(way, size, now);
    if (may_lose && draw() < line.loss_mark) { /* lost on the line: it has used its time */
        way->lost++;
        return;
    }
    Packet *p = &way->ring[way->last++ % RING];
    p->data = malloc((size_t)size);
    memcpy(p->data, data, (size_t)size);
    p->size = size;
    p->due_ns = way->free_at_ns + line.delay_ns;
}

static void read_device(int in, Way *way, int may_lose) {
    char data[PACKET_MAX];
    for (int i = 0; i < BURST; i++) {
        ssize_t size = read(in, data, sizeof data);
        if (size <= 0) return;
        take(way, data, (int)size, now_ns(), may_lose);
    }
}

static void deliver(Way *way) {
    int64_t now = now_ns();
    while (way->first != way->last && way->ring[way->first % RING].due_ns <= now) {
        Packet *p = &way->ring[way->first++ % RING];
        if (write(way->out, p->data, (size_t)p->size) == p->size) way->passed++;
        way->bytes += p->size;
        free(p->data);
    }
}

static int64_t next_due(const Way *a, const Way *b) {
    int64_t due = INT64_MAX;
    if (a->first != a->last) due = a->ring[a->first % RING].due_ns;
    if (b->first != b->last && b->ring[b->first % RING].due_ns < due)
        due = b->ring[b->first % RING].due_ns;
    return due;
}

static void report(const char *name, const Way *way, const char *end) {
    printf("\"%s\": {\"passed\": %ld, \"dropped\": %ld, \"lost\": %ld, \"bytes\": %lld}%s", name,
           way->passed, way->dropped, way->lost, way->bytes, end);
}

static void change(const char *text) {
    double rate, delay_us, loss;
    if (sscanf(text, "%lf %lf %lf", &rate, &delay_us, &loss) != 3) return;
    line.ns_per_byte = 8e9 / rate;
    line.delay_ns = (int64_t)(delay_us * 1000);
    line.loss_mark = (uint32_t)(loss / 1e6 * 4294967295.0);
}

/* Obey what stands on standard input; 0 when it has ended. */
static int listen_to_input(const Way *up, const Way *down) {
    char text[1024], *save;
    ssize_t size = read(0, text, sizeof text - 1);
    if (size <= 0) return 0;
    text[size] = 0;
    for (char *one = strtok_r(text, "\n", &save); one; one = strtok_r(NULL, "\n", &save)) {
        if (*one != '?') {
            change(one);
            continue;
        }
        printf("{");
        report("up", up, ", ");
        report("down", down, "}\n");
        fflush(stdout);
    }
    return 1;
}

static void set_timer(int timer, int64_t due) {
    struct itimerspec when = {0};
    if (due != INT64_MAX) {
        when.it_value.tv_sec = due / 1000000000;
        when.it_value.tv_nsec = due % 1000000000;
    }
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

int main(int argc, char **argv) {
    if (argc != 6) return fprintf(stderr, "usage: see link.c\n"), 2;
    int mtu = atoi(argv[3]);
    int a = open_device(argv[1], mtu), b = open_device(argv[2], mtu);
    Way up = {.out = b, .ring = calloc(RING, sizeof(Packet))};
    Way down = {.out = a, .ring = calloc(RING, sizeof(Packet))};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    random_state = strtoull(argv[5], NULL, 10) * 2 + 88172645463325252ull;
    line.queue = atol(argv[4]);
    line.ns_per_byte = 1;
    puts("ready");
    fflush(stdout);
    struct pollfd ears[4] = {{a, POLLIN, 0}, {b, POLLIN, 0}, {0, POLLIN, 0}, {timer, POLLIN, 0}};
    for (int goes_on = 1; goes_on;) {
        uint64_t ignored;
        set_timer(timer, next_due(&up, &down));
        if (poll(ears, 4, -1) < 0 && errno != EINTR) fail("poll");
        if (ears[3].revents && read(timer, &ignored, sizeof ignored) < 0 && errno != EAGAIN) break;
        if (ears[2].revents) goes_on = listen_to_input(&up, &down);
        read_device(a, &up, 1);
        read_device(b, &down, 0);
        deliver(&up);
        deliver(&down);
    }
    return 0;
}
