/* Sends prepared HTTP/1.1 requests to 127.0.0.1 and writes down what became of each of them.
 *
 * One thread, one epoll, connections kept alive.  In the open loop (RATE > 0) a request is due at
 * a moment that no answer can delay: where all connections are busy it waits for one, and the
 * waiting counts, since `due` stays.  In the closed loop (RATE = 0) every connection sends its
 * next request as soon as it has an answer.  Nothing is computed here but the times; load.py,
 * which compiles and starts this, does the rest.
 *
 *     load PORT REQUESTS RATE CONNECTIONS SECONDS TIMEOUT POISSON SEED KEEP >results
 *
 * REQUESTS is a file of requests, each its length (uint32) and its bytes, sent in turn.  SIGTERM
 * ends the sending early.  The results are a header, a record for each request, and the bodies of
 * the answers if KEEP is 1; all in the machine's own byte order.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum fault { ANSWERED, REFUSED, CLOSED, LATE, GARBLED, UNSENT };

struct header {
    int64_t started, ended; /* CLOCK_MONOTONIC, in nanoseconds, as all times */
    double processor;       /* seconds that this program computed */
    uint64_t records, kept;
};

struct record {
    int64_t due, sent, done;
    uint64_t body_at;
    uint32_t body_length, request;
    uint16_t status, fault;
    uint32_t unused;
};

struct connection {
    int handle; /* -1 while there is none */
    int busy;
    int rests; /* after a failure, until the next tick */
    size_t record;
    const char *out;
    size_t out_left;
    char *in;
    size_t in_length, in_room;
    size_t head_length, whole_length; /* 0 until the head has come */
    int closes;
};

static const int64_t SECOND = 1000000000, TICK = 10000000;

static int port, poll_handle, keep;
static double rate;
static int64_t now, end, patience;
static uint64_t random_state;

static struct connection *connections;
static int n_connections;
static int *idle, idle_first, idle_count; /* first in, first out: all connections are used */

static struct record *records;
static size_t n_records, records_room;
static char *kept;
static size_t kept_length, kept_room;

static const char **requests;
static uint32_t *request_lengths;
static size_t n_requests;

static volatile sig_atomic_t told_to_stop;

static void stop(int number) {
    (void)number;
    told_to_stop = 1;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void *room_for(void *memory, size_t needed, size_t *room, size_t size) {
    if (needed <= *room) return memory;
    while (*room < needed) *room = *room ? 2 * *room : 4096;
    if (!(memory = realloc(memory, *room * size))) fail("memory");
    return memory;
}

static int64_t monotonic(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* splitmix64 (Steele, Lea and Flood 2014), in (0, 1] */
static double uniform(void) {
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)(((z ^ (z >> 31)) >> 11) + 1) * 0x1p-53;
}

static size_t new_record(int64_t due) {
    records = room_for(records, n_records + 1, &records_room, sizeof *records);
    records[n_records] = (struct record){.due = due, .request = n_records % n_requests};
    return n_records++;
}

static void hang_up(struct connection *c) {
    if (c->handle >= 0) close(c->handle);
    c->handle = -1;
}

static void finish(struct connection *c, enum fault fault) {
    records[c->record].done = now = monotonic();
    records[c->record].fault = fault;
    c->busy = 0;
    c->out_left = 0;
    if ((c->rests = fault != ANSWERED)) hang_up(c);
    idle[(idle_first + idle_count++) % n_connections] = c - connections;
}

static void flush(struct connection *c) {
    while (c->out_left) {
        ssize_t n = send(c->handle, c->out, c->out_left, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) return;
        if (n < 0) {
            finish(c, CLOSED);
            return;
        }
        c->out += n;
        c->out_left -= n;
    }
}

/* Whether a new connection is there or on its way. */
static int dial(struct connection *c) {
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    int one = 1;
    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if ((c->handle = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)) < 0) fail("socket");
    setsockopt(c->handle, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    event.data.ptr = c;
    if (epoll_ctl(poll_handle, EPOLL_CTL_ADD, c->handle, &event)) fail("epoll_ctl");
    return !connect(c->handle, (struct sockaddr *)&place, sizeof place) || errno == EINPROGRESS;
}

static void begin(int64_t due) {
    struct connection *c = &connections[idle[idle_first]];
    idle_first = (idle_first + 1) % n_connections;
    idle_count--;
    c->record = new_record(due);
    c->busy = 1;
    c->in_length = c->head_length = c->whole_length = 0;
    c->out = requests[records[c->record].request];
    c->out_left = request_lengths[records[c->record].request];
    records[c->record].sent = now = monotonic();
    if (c->handle >= 0)
        flush(c);
    else if (!dial(c))
        finish(c, REFUSED);
    /* a new connection flushes when it is told that it may write */
}

/* Reads status and length from a head that has come whole; 0 if it makes no sense. */
static int head(struct connection *c) {
    char *line = c->in, *last = c->in + c->head_length - 2;
    long length = -1;
    if (c->head_length < 16 || memcmp(line, "HTTP/1.1 ", 9)) return 0;
    records[c->record].status = atoi(line + 9);
    if (records[c->record].status == 204) length = 0;
    c->closes = 0;
    while ((line = (char *)memmem(line, last + 2 - line, "\r\n", 2) + 2) < last) {
        if (!strncasecmp(line, "content-length:", 15)) length = atol(line + 15);
        if (!strncasecmp(line, "connection: close", 17)) c->closes = 1;
    }
    c->whole_length = c->head_length + (length > 0 ? length : 0);
    return length >= 0;
}

/* Looks whether the answer is whole. */
static void look(struct connection *c) {
    struct record *r = &records[c->record];
    if (!c->head_length) {
        char *mark = memmem(c->in, c->in_length, "\r\n\r\n", 4);
        if (!mark) return;
        c->head_length = mark + 4 - c->in;
        if (!head(c)) {
            finish(c, GARBLED);
            return;
        }
    }
    if (c->in_length < c->whole_length) return;
    if (c->in_length > c->whole_length) {
        finish(c, GARBLED);
        return;
    }
    r->body_length = c->whole_length - c->head_length;
    r->body_at = kept_length;
    if (keep && r->body_length) {
        kept = room_for(kept, kept_length + r->body_length, &kept_room, 1);
        memcpy(kept + kept_length, c->in + c->head_length, r->body_length);
        kept_length += r->body_length;
    }
    if (c->closes) hang_up(c);
    finish(c, ANSWERED);
}

static void receive(struct connection *c, int hung_up) {
    do {
        c->in = room_for(c->in, c->in_length + 65536, &c->in_room, 1);
        ssize_t n = recv(c->handle, c->in + c->in_length, c->in_room - c->in_length, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0 || !c->busy) { /* hung up, or speaks without being asked */
            int refused = n < 0 && errno == ECONNREFUSED;
            hang_up(c);
            if (c->busy) finish(c, refused ? REFUSED : CLOSED);
            return;
        }
        c->in_length += n;
        look(c);
        /* a whole answer is the last thing to read, unless the end of the connection follows */
    } while (c->handle >= 0 && (c->busy || hung_up));
}

static void handle(const struct epoll_event *event) {
    struct connection *c = event->data.ptr;
    if (c->handle < 0) return;
    uint32_t ends = EPOLLRDHUP | EPOLLERR | EPOLLHUP;
    if (event->events & (EPOLLIN | ends)) receive(c, (event->events & ends) != 0);
    if (c->handle >= 0 && c->busy && event->events & EPOLLOUT) flush(c);
}

static void give_up_late(void) {
    for (int i = 0; i < n_connections; i++)
        if (connections[i].busy && now - records[connections[i].record].sent > patience)
            finish(&connections[i], LATE);
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    size_t room = 0, lengths_room = 0;
    uint32_t length;
    if (!file) fail(path);
    while (fread(&length, sizeof length, 1, file) == 1) {
        char *request = malloc(length);
        if (!request || fread(request, 1, length, file) != length) fail(path);
        requests = room_for(requests, n_requests + 1, &room, sizeof *requests);
        request_lengths =
            room_for(request_lengths, n_requests + 1, &lengths_room, sizeof *request_lengths);
        requests[n_requests] = request;
        request_lengths[n_requests++] = length;
    }
    fclose(file);
    if (!n_requests) fail(path);
}

/* Connections that are there before the clock runs. */
static void dial_all(void) {
    for (int i = 0; i < n_connections; i++) {
        connections[i].handle = -1;
        idle[idle_count++] = i;
        if (!dial(&connections[i])) hang_up(&connections[i]);
    }
    usleep(200000);
}

int main(int count, char **words) {
    struct epoll_event events[256], tick = {.events = EPOLLIN};
    struct rusage usage;
    struct header top = {0};
    int clock_handle;
    if (count != 10) {
        fprintf(stderr, "load is started by load.py\n");
        return 2;
    }
    port = atoi(words[1]);
    read_requests(words[2]);
    rate = atof(words[3]);
    n_connections = atoi(words[4]);
    patience = (int64_t)(atof(words[6]) * SECOND);
    int poisson = atoi(words[7]);
    random_state = strtoull(words[8], NULL, 10);
    keep = atoi(words[9]);
    connections = calloc(n_connections, sizeof *connections);
    idle = calloc(n_connections, sizeof *idle);
    poll_handle = epoll_create1(0);
    clock_handle = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (!connections || !idle || poll_handle < 0 || clock_handle < 0) fail("start");
    epoll_ctl(poll_handle, EPOLL_CTL_ADD, clock_handle, &tick);
    sigaction(SIGTERM, &(struct sigaction){.sa_handler = stop}, NULL);
    dial_all();

    now = top.started = monotonic();
    end = now + (int64_t)(atof(words[5]) * SECOND);
    int64_t looked = now, armed = 0;
    double next = now; /* in the open loop: when the next request is due */
    if (rate > 0 && poisson) next += -log(uniform()) / rate * SECOND;
    for (;;) {
        now = monotonic();
        if (told_to_stop && end > now) end = now;
        if (rate > 0) {
            while (next <= now && next < end && idle_count && now < end + patience) {
                begin((int64_t)next);
                next += (poisson ? -log(uniform()) : 1) / rate * SECOND;
            }
            if (next < end && idle_count && armed != (int64_t)next) {
                int64_t at = armed = (int64_t)next;
                struct itimerspec when = {.it_value = {at / SECOND, at % SECOND}};
                timerfd_settime(clock_handle, TFD_TIMER_ABSTIME, &when, NULL);
            }
        } else if (now < end) {
            for (int left = idle_count; left > 0; left--) {
                if (connections[idle[idle_first]].rests && now - looked < TICK) {
                    idle[(idle_first + idle_count) % n_connections] = idle[idle_first];
                    idle_first = (idle_first + 1) % n_connections;
                } else {
                    begin(now);
                }
            }
        }
        if (now - looked >= TICK) {
            looked = now;
            give_up_late();
        }
        int over = rate > 0 ? next >= end || now >= end + patience : now >= end;
        if (over && idle_count == n_connections) break;
        int n = epoll_wait(poll_handle, events, 256, 10);
        for (int i = 0; i < n; i++) {
            if (!events[i].data.ptr) {
                uint64_t rings;
                if (read(clock_handle, &rings, sizeof rings) < 0 && errno != EAGAIN) fail("clock");
            } else {
                handle(&events[i]);
            }
        }
    }
    for (; rate > 0 && next < end; next += (poisson ? -log(uniform()) : 1) / rate * SECOND) {
        size_t place = new_record((int64_t)next); /* may move them */
        records[place].sent = records[place].done = now;
        records[place].fault = UNSENT;
    }
    top.ended = end;
    top.records = n_records;
    top.kept = kept_length;
    getrusage(RUSAGE_SELF, &usage);
    top.processor = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
                    (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    fwrite(&top, sizeof top, 1, stdout);
    if (records) fwrite(records, sizeof *records, n_records, stdout);
    if (kept) fwrite(kept, 1, kept_length, stdout);
    return fflush(stdout) ? 1 : 0;
}
