/* A server that takes uploads as fast as this machine allows, and keeps none of their bytes.
 *
 * It speaks as much of OSS, S3 and ApsaraVideo VOD as uploaders need: PutObject, multipart
 * uploads, ListParts, HEAD, CreateUploadVideo, RefreshUploadVideo, GetMezzanineInfo. Nothing
 * is authenticated. One thread a connection; loopback or a namespace of the benchmark only.
 *
 *   sink HTTP-PORT [HTTPS-PORT CERTIFICATE KEY]      port 0: any
 *
 * It prints {"http": port, "https": port} and ends when its standard input does.
 *
 *   GET  /-/stats             what it has seen, and what it has cost
 *   POST /-/reset             forget everything, settings too
 *   POST /-/clock             forget when the first body came
 *   POST /-/set?name=value    crc=0|1 (compute CRC-64), md5=0|1 (ETags are MD5s), latency_ms=N
 *                             (before each answer), fail_every=N (503 for every n-th body),
 *                             fail_part=N (503 for that part, always)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "crc64.h"

#ifdef WITH_TLS
#include <openssl/evp.h>
#include <openssl/ssl.h>
static SSL_CTX *tls;
#endif

enum { UNIT = 1 << 20, HEAD_MAX = 64 << 10, DOCUMENT_MAX = 8 << 20, BUCKETS = 4096, PARTS = 10000,
       STEPS = 3000 };

/* --- settings and figures ------------------------------------------------------------ */

static struct { long crc, md5, latency_ms, fail_every, fail_part; } set;
static struct {
    uint64_t body_bytes, bodies, requests, connections, failures;
    double first_body_s, last_body_s; /* CLOCK_MONOTONIC of bytes in bodies above 4 KiB */
    uint64_t timeline[STEPS]; /* bytes of each 100 ms since first_body_s */
    char tls[64]; /* protocol and cipher of the last connection that has them */
} seen;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* --- what is stored: facts about bytes, never bytes ---------------------------------- */

typedef struct { uint64_t size, crc; unsigned char md5[16]; int is_here; } Facts;
typedef struct Object { struct Object *next; char *key; Facts facts; int part_count; } Object;
typedef struct Upload { struct Upload *next; char id[33]; Facts *parts; int capacity; } Upload;

static Object *objects[BUCKETS];
static Upload *uploads[BUCKETS];
static uint64_t upload_count, video_count;

static unsigned hash(const char *text) {
    unsigned h = 2166136261u;
    while (*text) h = (h ^ (unsigned char)*text++) * 16777619u;
    return h % BUCKETS;
}

static Object *find_object(const char *key) {
    Object *o = objects[hash(key)];
    while (o && strcmp(o->key, key)) o = o->next;
    return o;
}

static void store_object(const char *key, Facts facts, int part_count) {
    Object *o = find_object(key);
    if (!o) {
        o = calloc(1, sizeof *o);
        o->key = strdup(key);
        o->next = objects[hash(key)];
        objects[hash(key)] = o;
    }
    o->facts = facts;
    o->part_count = part_count;
}

static Upload *find_upload(const char *id) {
    Upload *u = uploads[hash(id)];
    while (u && strcmp(u->id, id)) u = u->next;
    return u;
}

static Upload *new_upload(void) {
    Upload *u = calloc(1, sizeof *u);
    snprintf(u->id, sizeof u->id, "%032llX", (unsigned long long)++upload_count);
    u->next = uploads[hash(u->id)];
    uploads[hash(u->id)] = u;
    return u;
}

static void drop_upload(const char *id) {
    for (Upload **at = &uploads[hash(id)]; *at; at = &(*at)->next)
        if (!strcmp((*at)->id, id)) {
            Upload *u = *at;
            *at = u->next;
            free(u->parts);
            free(u);
            return;
        }
}

static void store_part(Upload *u, int number, Facts facts) {
    if (number > u->capacity) {
        int larger = number + 256 > PARTS ? PARTS : number + 256;
        u->parts = realloc(u->parts, (size_t)larger * sizeof *u->parts);
        memset(u->parts + u->capacity, 0, (size_t)(larger - u->capacity) * sizeof *u->parts);
        u->capacity = larger;
    }
    u->parts[number - 1] = facts;
}

static void forget_everything(void) {
    for (int i = 0; i < BUCKETS; i++) {
        while (uploads[i]) drop_upload(uploads[i]->id);
        for (Object *o = objects[i], *next; o; o = next) {
            next = o->next;
            free(o->key);
            free(o);
        }
        objects[i] = NULL;
    }
    memset(&seen, 0, sizeof seen);
    memset(&set, 0, sizeof set);
    set.crc = 1;
}

/* --- ETags --------------------------------------------------------------------------- */

static void no_md5(Facts *f) {
    /* Not an MD5, but different for different bytes and free of charge. */
    memcpy(f->md5, &f->crc, 8);
    memcpy(f->md5 + 8, &f->size, 8);
}

/* OSS joins the ETags as text, in upper case; S3 would join the 16 bytes of each. */
static void md5_of_parts(Facts *whole, const char *etags, int count) {
#ifdef WITH_TLS
    unsigned size;
    if (set.md5 && EVP_Digest(etags, (size_t)count * 32, whole->md5, &size, EVP_md5(), NULL)) return;
#endif
    (void)etags, (void)count;
    no_md5(whole);
}

static const char *etag(char *out, const Facts *f, int part_count) {
    for (int i = 0; i < 16; i++) sprintf(out + 2 * i, "%02X", f->md5[i]);
    if (part_count) sprintf(out + 32, "-%d", part_count);
    return out;
}

/* --- connections --------------------------------------------------------------------- */

typedef struct {
    int fd;
    char *buffer; /* HEAD_MAX + UNIT */
    size_t begin, end; /* of what was read and not used yet */
#ifdef WITH_TLS
    SSL *ssl;
#endif
} Peer;

static ssize_t receive(Peer *p, void *into, size_t size) {
#ifdef WITH_TLS
    if (p->ssl) return SSL_read(p->ssl, into, (int)size);
#endif
    ssize_t got;
    do got = recv(p->fd, into, size, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

static int transmit(Peer *p, const char *data, size_t size) {
    while (size) {
#ifdef WITH_TLS
        ssize_t put = p->ssl ? SSL_write(p->ssl, data, (int)size)
                             : send(p->fd, data, size, MSG_NOSIGNAL);
#else
        ssize_t put = send(p->fd, data, size, MSG_NOSIGNAL);
#endif
        if (put <= 0) return 0;
        data += put;
        size -= (size_t)put;
    }
    return 1;
}

/* --- requests ------------------------------------------------------------------------ */

typedef struct {
    char method[8], *path, *query, *action;
    uint64_t left; /* of the body, or of its current chunk */
    int is_chunked, is_over, waits, closes;
} Request;

static void decode(char *text) {
    char *out = text;
    for (; *text; text++) {
        if (*text == '%' && isxdigit((unsigned char)text[1]) && isxdigit((unsigned char)text[2])) {
            char hex[3] = {text[1], text[2], 0};
            *out++ = (char)strtol(hex, NULL, 16);
            text += 2;
        } else {
            *out++ = *text;
        }
    }
    *out = 0;
}

/* The value of a parameter, "" if it has none, NULL if it is not there. */
static const char *parameter(const char *query, const char *name, char *out, size_t room) {
    size_t length = strlen(name);
    for (const char *at = query; at && *at; at = strchr(at, '&') ? strchr(at, '&') + 1 : NULL) {
        if (strncmp(at, name, length) || !strchr("=&", at[length])) continue;
        const char *value = at[length] == '=' ? at + length + 1 : "";
        snprintf(out, room, "%.*s", (int)strcspn(value, "&"), value);
        decode(out);
        return out;
    }
    return NULL;
}

static long number(const char *query, const char *name, long otherwise) {
    char text[32];
    return parameter(query, name, text, sizeof text) && *text ? atol(text) : otherwise;
}

/* Read a request's head; 0 when the peer has gone or makes no sense. The strings of the
 * request live in the first HEAD_MAX bytes of the buffer, bodies are read behind them. */
static int read_head(Peer *p, Request *r) {
    memmove(p->buffer, p->buffer + p->begin, p->end - p->begin);
    p->end -= p->begin;
    p->begin = 0;
    char *stop;
    for (;;) {
        p->buffer[p->end] = 0;
        if ((stop = memmem(p->buffer, p->end, "\r\n\r\n", 4))) break;
        if (p->end >= HEAD_MAX - 1) return 0;
        ssize_t got = receive(p, p->buffer + p->end, HEAD_MAX - 1 - p->end);
        if (got <= 0) return 0;
        p->end += (size_t)got;
    }
    *stop = 0;
    p->begin = (size_t)(stop - p->buffer) + 4;
    char *save, *line = strtok_r(p->buffer, "\r\n", &save), *target;
    memset(r, 0, sizeof *r);
    if (!line || !(target = strchr(line, ' '))) return 0;
    *target++ = 0;
    snprintf(r->method, sizeof r->method, "%s", line);
    target[strcspn(target, " ")] = 0;
    r->path = target;
    r->query = strchr(target, '?');
    if (r->query) *r->query++ = 0; else r->query = "";
    decode(r->path);
    while ((line = strtok_r(NULL, "\r\n", &save))) {
        if (!strncasecmp(line, "content-length:", 15)) r->left = strtoull(line + 15, NULL, 10);
        if (!strncasecmp(line, "x-acs-action:", 13)) r->action = line + 13 + strspn(line + 13, " ");
        if (!strncasecmp(line, "expect:", 7)) r->waits = 1;
        if (!strncasecmp(line, "connection: close", 17)) r->closes = 1;
        if (!strncasecmp(line, "transfer-encoding:", 18)) r->is_chunked = 1;
    }
    r->is_over = !r->is_chunked && !r->left;
    return 1;
}

/* What comes next, at most `most` bytes; NULL when the peer has gone. */
static char *next_bytes(Peer *p, uint64_t most, size_t *size) {
    char *piece = p->buffer + HEAD_MAX;
    if (p->end > p->begin) {
        piece = p->buffer + p->begin;
        *size = p->end - p->begin;
        if (*size > most) *size = (size_t)most;
        p->begin += *size;
        return piece;
    }
    ssize_t got = receive(p, piece, most < UNIT ? (size_t)most : UNIT);
    *size = (size_t)got;
    return got > 0 ? piece : NULL;
}

/* Read the line that begins a chunk, and what stands before and behind it. */
static int begin_chunk(Peer *p, Request *r) {
    char line[32] = "", *byte;
    size_t have = 0, size;
    while ((byte = next_bytes(p, 1, &size)) && (*byte != '\n' || !have))
        if (!isspace((unsigned char)*byte) && have < sizeof line - 1) line[have++] = *byte;
    line[have] = 0;
    r->left = strtoull(line, NULL, 16);
    if (byte && !r->left) { /* the last one; no trailers */
        r->is_over = 1;
        while ((byte = next_bytes(p, 1, &size)) && *byte != '\n') continue;
    }
    return byte != NULL;
}

/* The next piece of a body. NULL when it is over, or else the peer has gone. */
static char *next_piece(Peer *p, Request *r, size_t *size) {
    if (r->is_chunked && !r->is_over && !r->left && !begin_chunk(p, r)) return NULL;
    if (r->is_over) return NULL;
    char *piece = next_bytes(p, r->left, size);
    if (piece) r->left -= *size;
    if (!r->left && !r->is_chunked) r->is_over = 1;
    return piece;
}

static void note_bytes(size_t size, int is_timed) {
    double now = now_s();
    pthread_mutex_lock(&lock);
    seen.body_bytes += size;
    if (is_timed && !seen.first_body_s) seen.first_body_s = now;
    if (is_timed) seen.last_body_s = now;
    size_t step = is_timed ? (size_t)((now - seen.first_body_s) * 10) : STEPS;
    if (step < STEPS) seen.timeline[step] += size;
    pthread_mutex_unlock(&lock);
}

static int read_body(Peer *p, Request *r, Facts *f) {
    memset(f, 0, sizeof *f);
    int is_timed = r->is_chunked || r->left > 4096; /* not what clients warm up with */
#ifdef WITH_TLS
    EVP_MD_CTX *md5 = set.md5 ? EVP_MD_CTX_new() : NULL;
    if (md5) EVP_DigestInit_ex(md5, EVP_md5(), NULL);
#endif
    size_t size;
    for (char *piece; (piece = next_piece(p, r, &size));) {
        if (set.crc) f->crc = crc64(f->crc, piece, size);
#ifdef WITH_TLS
        if (md5) EVP_DigestUpdate(md5, piece, size);
#endif
        f->size += size;
        note_bytes(size, is_timed);
    }
    no_md5(f);
#ifdef WITH_TLS
    if (md5) EVP_DigestFinal_ex(md5, f->md5, NULL);
    EVP_MD_CTX_free(md5);
#endif
    f->is_here = 1;
    return r->is_over;
}

static char *read_document(Peer *p, Request *r) {
    char *document = malloc(DOCUMENT_MAX + 1);
    size_t have = 0, size;
    for (char *piece; (piece = next_piece(p, r, &size)); have += size)
        if (have + size > DOCUMENT_MAX) break;
        else memcpy(document + have, piece, size);
    document[have] = 0;
    if (r->is_over) return document;
    free(document);
    return NULL;
}

/* --- answers ------------------------------------------------------------------------- */

typedef struct { char *data; size_t size, room; } Text;

static void add(Text *t, const char *format, ...) {
    va_list values;
    if (t->room - t->size < 2048) t->data = realloc(t->data, t->room = t->room * 2 + 4096);
    va_start(values, format);
    t->size += (size_t)vsnprintf(t->data + t->size, t->room - t->size, format, values);
    va_end(values);
}

static int answer(Peer *p, Request *r, int status, const char *headers, const char *body) {
    char date[64], head[2048];
    time_t now = time(NULL);
    struct tm utc;
    size_t size = body ? strlen(body) : 0;
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &utc));
    const char *reason = status == 200 ? "OK" : status == 204 ? "No Content" : "Refused";
    int length = snprintf(head, sizeof head,
        "HTTP/1.1 %d %s\r\nDate: %s\r\nServer: sink\r\nx-oss-request-id: 5F00000000000000\r\n"
        "x-amz-request-id: 5F00000000000000\r\n%s", status, reason, date, headers);
    if (!strcasestr(headers, "content-length"))
        length += snprintf(head + length, sizeof head - (size_t)length,
            "Content-Type: %s\r\nContent-Length: %zu\r\n",
            body && *body == '{' ? "application/json" : "application/xml", size);
    length += snprintf(head + length, sizeof head - (size_t)length, "\r\n");
    if (set.latency_ms) usleep((useconds_t)set.latency_ms * 1000);
    if (!transmit(p, head, (size_t)length)) return 0;
    if (size && strcmp(r->method, "HEAD") && !transmit(p, body, size)) return 0;
    return !r->closes;
}

static int answer_text(Peer *p, Request *r, Text *t, const char *headers) {
    int goes_on = answer(p, r, 200, headers, t->data);
    free(t->data);
    return goes_on;
}

static int refuse(Peer *p, Request *r, int status, const char *code) {
    char body[256];
    snprintf(body, sizeof body, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>from the "
        "sink</Message><RequestId>5F00000000000000</RequestId></Error>", code);
    return answer(p, r, status, "", body);
}

static void facts_headers(char *out, size_t room, const Facts *f, int part_count) {
    char tag[48];
    int size = snprintf(out, room, "ETag: \"%s\"\r\n", etag(tag, f, part_count));
    if (set.crc)
        snprintf(out + size, room - (size_t)size, "x-oss-hash-crc64ecma: %llu\r\n",
            (unsigned long long)f->crc);
}

/* --- OSS and S3 ---------------------------------------------------------------------- */

static int is_to_fail(long part_number) {
    pthread_mutex_lock(&lock);
    seen.bodies++;
    int fails = (set.fail_every && seen.bodies % (uint64_t)set.fail_every == 0)
             || (set.fail_part && set.fail_part == part_number);
    seen.failures += (uint64_t)fails;
    pthread_mutex_unlock(&lock);
    return fails;
}

static int put(Peer *p, Request *r) {
    char id[64], headers[256];
    long part_number = number(r->query, "partNumber", 0);
    int is_part = parameter(r->query, "uploadId", id, sizeof id) != NULL;
    Facts facts;
    if (r->waits && !transmit(p, "HTTP/1.1 100 Continue\r\n\r\n", 25)) return 0;
    if (!read_body(p, r, &facts)) return 0;
    if (is_to_fail(part_number)) return refuse(p, r, 503, "ServiceUnavailable");
    if (is_part && (part_number < 1 || part_number > PARTS))
        return refuse(p, r, 400, "InvalidArgument");
    pthread_mutex_lock(&lock);
    Upload *u = is_part ? find_upload(id) : NULL;
    if (u) store_part(u, (int)part_number, facts);
    if (!is_part) store_object(r->path, facts, 0);
    pthread_mutex_unlock(&lock);
    if (is_part && !u) return refuse(p, r, 404, "NoSuchUpload");
    facts_headers(headers, sizeof headers, &facts, 0);
    return answer(p, r, 200, headers, "");
}

static int initiate(Peer *p, Request *r) {
    Text t = {0};
    pthread_mutex_lock(&lock);
    Upload *u = new_upload();
    add(&t, "<?xml version=\"1.0\" encoding=\"UTF-8\"?><InitiateMultipartUploadResult><Bucket>"
        "bench</Bucket><Key>key</Key><UploadId>%s</UploadId></InitiateMultipartUploadResult>",
        u->id);
    pthread_mutex_unlock(&lock);
    return answer_text(p, r, &t, "");
}

static int list_parts(Peer *p, Request *r, const char *id) {
    long marker = number(r->query, "part-number-marker", 0);
    long most = number(r->query, "max-parts", 1000), listed = 0;
    Text t = {0};
    char tag[48];
    pthread_mutex_lock(&lock);
    Upload *u = find_upload(id);
    if (u) add(&t, "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListPartsResult><UploadId>%s"
        "</UploadId>", id);
    long i = marker;
    for (; u && i < u->capacity && listed < most; i++) {
        Facts *f = &u->parts[i];
        if (!f->is_here) continue;
        add(&t, "<Part><PartNumber>%ld</PartNumber><LastModified>2020-01-01T00:00:00.000Z"
            "</LastModified><ETag>\"%s\"</ETag><HashCrc64ecma>%llu</HashCrc64ecma><Size>%llu"
            "</Size></Part>", i + 1, etag(tag, f, 0), (unsigned long long)f->crc,
            (unsigned long long)f->size);
        listed++;
    }
    if (u) add(&t, "<NextPartNumberMarker>%ld</NextPartNumberMarker><IsTruncated>%s</IsTruncated>"
        "</ListPartsResult>", i, i < u->capacity ? "true" : "false");
    pthread_mutex_unlock(&lock);
    return u ? answer_text(p, r, &t, "") : refuse(p, r, 404, "NoSuchUpload");
}

/* Join the parts that the document lists; 0 if one of them is not here. */
static int join(Upload *u, const char *document, Facts *whole) {
    char *etags = malloc(PARTS * 32 + 1);
    int count = 0;
    memset(whole, 0, sizeof *whole);
    for (const char *at = document; (at = strstr(at, "<PartNumber>")); at++) {
        long n = atol(at + 12);
        if (n < 1 || n > u->capacity || !u->parts[n - 1].is_here || count == PARTS) count = -PARTS;
        if (count < 0) break;
        Facts *part = &u->parts[n - 1];
        whole->crc = crc64_join(whole->crc, part->crc, part->size);
        whole->size += part->size;
        etag(etags + 32 * count++, part, 0);
    }
    whole->is_here = 1;
    if (count > 0) md5_of_parts(whole, etags, count);
    free(etags);
    return count > 0 ? count : 0;
}

static int complete(Peer *p, Request *r, const char *id) {
    char *document = read_document(p, r), headers[256], tag[48];
    if (!document) return 0;
    Facts whole;
    pthread_mutex_lock(&lock);
    Upload *u = find_upload(id);
    int count = u ? join(u, document, &whole) : 0;
    if (count) {
        store_object(r->path, whole, count);
        drop_upload(id);
    }
    pthread_mutex_unlock(&lock);
    free(document);
    if (!u) return refuse(p, r, 404, "NoSuchUpload");
    if (!count) return refuse(p, r, 400, "InvalidPart");
    Text t = {0};
    add(&t, "<?xml version=\"1.0\" encoding=\"UTF-8\"?><CompleteMultipartUploadResult><Location>"
        "sink</Location><Bucket>bench</Bucket><Key>key</Key><ETag>\"%s\"</ETag>"
        "</CompleteMultipartUploadResult>", etag(tag, &whole, count));
    facts_headers(headers, sizeof headers, &whole, count);
    return answer_text(p, r, &t, headers);
}

static int head(Peer *p, Request *r) {
    char headers[512];
    pthread_mutex_lock(&lock);
    Object *o = find_object(r->path);
    if (o) {
        facts_headers(headers, sizeof headers, &o->facts, o->part_count);
        size_t size = strlen(headers);
        snprintf(headers + size, sizeof headers - size, "Content-Length: %llu\r\n"
            "Last-Modified: Wed, 01 Jan 2020 00:00:00 GMT\r\n", (unsigned long long)o->facts.size);
    }
    pthread_mutex_unlock(&lock);
    return o ? answer(p, r, 200, headers, NULL) : answer(p, r, 404, "", NULL);
}

/* --- VOD ----------------------------------------------------------------------------- */

static void base64(char *out, const char *in) {
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t size = strlen(in);
    for (size_t i = 0; i < size; i += 3) {
        unsigned v = (unsigned)(unsigned char)in[i] << 16;
        if (i + 1 < size) v |= (unsigned)(unsigned char)in[i + 1] << 8;
        if (i + 2 < size) v |= (unsigned char)in[i + 2];
        *out++ = digits[v >> 18];
        *out++ = digits[v >> 12 & 63];
        *out++ = i + 1 < size ? digits[v >> 6 & 63] : '=';
        *out++ = i + 2 < size ? digits[v & 63] : '=';
    }
    *out = 0;
}

static int is_tls(Peer *p) {
#ifdef WITH_TLS
    return p->ssl != NULL;
#else
    (void)p;
    return 0;
#endif
}

static int grant(Peer *p, Request *r, const char *video_id) {
    struct sockaddr_in here;
    socklen_t size = sizeof here;
    char plain[512], address[1024], auth[1024];
    Text t = {0};
    getsockname(p->fd, (struct sockaddr *)&here, &size);
    snprintf(plain, sizeof plain, "{\"Endpoint\":\"%s://127.0.0.1:%d\",\"Bucket\":\"bench\","
        "\"FileName\":\"video/%s.mp4\"}", is_tls(p) ? "https" : "http", ntohs(here.sin_port),
        video_id);
    base64(address, plain);
    base64(auth, "{\"AccessKeyId\":\"STS.bench\",\"AccessKeySecret\":\"bench\",\"SecurityToken\":"
        "\"bench\",\"Expiration\":\"3000\"}");
    add(&t, "{\"RequestId\":\"5F000000-0000-0000-0000-000000000000\",\"VideoId\":\"%s\","
        "\"UploadAddress\":\"%s\",\"UploadAuth\":\"%s\"}", video_id, address, auth);
    return answer_text(p, r, &t, "");
}

static int call_vod(Peer *p, Request *r, const char *action) {
    char video_id[64] = "", key[128], body[256];
    char *form = read_document(p, r);
    if (!form) return 0;
    if (!parameter(form, "VideoId", video_id, sizeof video_id))
        parameter(r->query, "VideoId", video_id, sizeof video_id);
    free(form);
    if (!strcmp(action, "CreateUploadVideo")) {
        pthread_mutex_lock(&lock);
        snprintf(video_id, sizeof video_id, "%032llx", (unsigned long long)++video_count);
        pthread_mutex_unlock(&lock);
    }
    if (!*video_id)
        return answer(p, r, 404, "", "{\"RequestId\":\"5F00\",\"Code\":\"InvalidVideo.NotFound\","
            "\"Message\":\"from the sink\"}");
    if (strcmp(action, "GetMezzanineInfo")) return grant(p, r, video_id);
    snprintf(key, sizeof key, "/bench/video/%s.mp4", video_id);
    pthread_mutex_lock(&lock);
    Object *o = find_object(key);
    snprintf(body, sizeof body, "{\"RequestId\":\"5F00\",\"Mezzanine\":{\"VideoId\":\"%s\","
        "\"Status\":\"%s\",\"Size\":%llu}}", video_id, o ? "Normal" : "Uploading",
        o ? (unsigned long long)o->facts.size : 0ull);
    pthread_mutex_unlock(&lock);
    return answer(p, r, 200, "", body);
}

/* --- the benchmark's own questions --------------------------------------------------- */

static void change_settings(const char *query) {
    set.crc = number(query, "crc", set.crc);
    set.md5 = number(query, "md5", set.md5);
    set.latency_ms = number(query, "latency_ms", set.latency_ms);
    set.fail_every = number(query, "fail_every", set.fail_every);
    set.fail_part = number(query, "fail_part", set.fail_part);
}

/* Bytes of each 100 ms, up to the last that had any. */
static void add_timeline(Text *t) {
    int last = STEPS;
    while (last && !seen.timeline[last - 1]) last--;
    for (int i = 0; i < last; i++)
        add(t, "%s%llu", i ? ", " : "", (unsigned long long)seen.timeline[i]);
}

static int control(Peer *p, Request *r) {
    struct rusage cost;
    Text t = {0};
    getrusage(RUSAGE_SELF, &cost);
    pthread_mutex_lock(&lock);
    if (!strcmp(r->path, "/-/reset")) forget_everything();
    if (!strcmp(r->path, "/-/clock")) {
        seen.first_body_s = seen.last_body_s = 0;
        memset(seen.timeline, 0, sizeof seen.timeline);
    }
    if (!strcmp(r->path, "/-/set")) change_settings(r->query);
    add(&t, "{\"body_bytes\": %llu, \"bodies\": %llu, \"requests\": %llu, \"connections\": %llu, "
        "\"failures\": %llu, \"first_body_s\": %.6f, \"last_body_s\": %.6f, \"cpu_s\": %.6f, "
        "\"rss_kib\": %ld, \"folds_crc\": %d, \"tls\": \"%s\", \"timeline\": [", (unsigned long long)seen.body_bytes,
        (unsigned long long)seen.bodies, (unsigned long long)seen.requests,
        (unsigned long long)seen.connections, (unsigned long long)seen.failures,
        seen.first_body_s, seen.last_body_s,
        (double)(cost.ru_utime.tv_sec + cost.ru_stime.tv_sec)
            + (double)(cost.ru_utime.tv_usec + cost.ru_stime.tv_usec) / 1e6,
        cost.ru_maxrss, crc64_can_fold, seen.tls);
    add_timeline(&t);
    add(&t, "]}");
    pthread_mutex_unlock(&lock);
    return answer_text(p, r, &t, "");
}

static int serve_one(Peer *p, Request *r) {
    char text[128];
    if (!strncmp(r->path, "/-/", 3)) return control(p, r);
    pthread_mutex_lock(&lock);
    seen.requests++;
    pthread_mutex_unlock(&lock);
    if (r->action) return call_vod(p, r, r->action);
    if (parameter(r->query, "Action", text, sizeof text)) return call_vod(p, r, text);
    if (!strcmp(r->method, "PUT")) return put(p, r);
    if (!strcmp(r->method, "HEAD")) return head(p, r);
    int has_id = parameter(r->query, "uploadId", text, sizeof text) != NULL;
    if (!strcmp(r->method, "POST") && has_id) return complete(p, r, text);
    if (!strcmp(r->method, "GET") && has_id) return list_parts(p, r, text);
    char *ignored = read_document(p, r);
    free(ignored);
    if (!ignored) return 0;
    if (!strcmp(r->method, "POST")) return initiate(p, r);
    if (strcmp(r->method, "DELETE")) return refuse(p, r, 404, "NoSuchKey");
    pthread_mutex_lock(&lock);
    if (has_id) drop_upload(text);
    pthread_mutex_unlock(&lock);
    return answer(p, r, 204, "", NULL);
}

/* --- life ---------------------------------------------------------------------------- */

typedef struct { int fd, is_tls; } Door;

static void *serve(void *given) {
    Door door = *(Door *)given;
    Peer p = {.fd = door.fd, .buffer = malloc(HEAD_MAX + UNIT)};
    Request r;
    int on = 1, is_ready = 1;
    free(given);
    setsockopt(p.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
#ifdef WITH_TLS
    if (door.is_tls) {
        p.ssl = SSL_new(tls);
        SSL_set_fd(p.ssl, p.fd);
        is_ready = SSL_accept(p.ssl) == 1;
        pthread_mutex_lock(&lock);
        snprintf(seen.tls, sizeof seen.tls, "%s %s", SSL_get_version(p.ssl),
            SSL_get_cipher_name(p.ssl));
        pthread_mutex_unlock(&lock);
    }
#endif
    while (is_ready && read_head(&p, &r) && serve_one(&p, &r)) continue;
#ifdef WITH_TLS
    if (p.ssl) SSL_free(p.ssl);
#endif
    close(p.fd);
    free(p.buffer);
    return NULL;
}

static void *accept_all(void *given) {
    Door door = *(Door *)given;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&small, 256 << 10);
    for (;;) {
        int fd = accept4(door.fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        pthread_mutex_lock(&lock);
        seen.connections++;
        pthread_mutex_unlock(&lock);
        Door *inner = malloc(sizeof *inner);
        *inner = (Door){fd, door.is_tls};
        pthread_t thread;
        if (pthread_create(&thread, &small, serve, inner)) close(fd), free(inner);
    }
    return NULL;
}

static int open_door(int port, int is_tls) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof here;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&here, size) || listen(fd, 512)) perror("sink"), exit(1);
    getsockname(fd, (struct sockaddr *)&here, &size);
    Door *door = malloc(sizeof *door);
    *door = (Door){fd, is_tls};
    pthread_t thread;
    pthread_create(&thread, NULL, accept_all, door);
    return ntohs(here.sin_port);
}

static int open_tls_door(int argc, char **argv) {
#ifdef WITH_TLS
    if (argc < 5) return 0;
    tls = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_read_ahead(tls, 1); /* whole records by one read, not headers first */
    SSL_CTX_set_default_read_buffer_len(tls, 256 << 10);
    /* One cipher for everybody: some clients would choose a cheaper one than others. */
    if (SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION) != 1 ||
        SSL_CTX_set_ciphersuites(tls, "TLS_AES_256_GCM_SHA384") != 1 ||
        SSL_CTX_set_cipher_list(tls, "ECDHE-ECDSA-AES256-GCM-SHA384") != 1)
        fprintf(stderr, "sink: no cipher\n"), exit(1);
    if (SSL_CTX_use_certificate_chain_file(tls, argv[3]) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls, argv[4], SSL_FILETYPE_PEM) != 1)
        fprintf(stderr, "sink: no certificate\n"), exit(1);
    return open_door(atoi(argv[2]), 1);
#else
    (void)argc, (void)argv;
    return 0;
#endif
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: see sink.c\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    crc64_init();
    forget_everything();
    int http = open_door(atoi(argv[1]), 0);
    int https = open_tls_door(argc, argv);
    printf("{\"http\": %d, \"https\": %d}\n", http, https);
    fflush(stdout);
    char ignored[64];
    while (read(0, ignored, sizeof ignored) > 0) continue;
    return 0;
}
