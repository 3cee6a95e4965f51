/* The least a client can do: one PUT of a file, without any check of what is sent.
 *
 *   floor sendfile|copy|tls PORT FILE
 *
 * sendfile: the kernel moves the pages. copy: pread and send by 256 KiB. tls: the same
 * through OpenSSL. Nothing is verified, the server's certificate least of all.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef WITH_TLS
#include <openssl/ssl.h>
static SSL *ssl;
#endif

enum { UNIT = 256 << 10 };

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int dial(int port) {
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    there.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&there, sizeof there)) fail("connect");
    return fd;
}

static void begin_tls(int fd) {
#ifdef WITH_TLS
    ssl = SSL_new(SSL_CTX_new(TLS_client_method()));
    SSL_set_fd(ssl, fd);
    if (SSL_connect(ssl) != 1) fail("TLS");
#else
    (void)fd;
    fail("built without TLS");
#endif
}

static void put_all(int fd, const char *data, ssize_t size) {
    while (size > 0) {
#ifdef WITH_TLS
        ssize_t put = ssl ? SSL_write(ssl, data, (int)size) : send(fd, data, (size_t)size, 0);
#else
        ssize_t put = send(fd, data, (size_t)size, 0);
#endif
        if (put <= 0) fail("send");
        data += put;
        size -= put;
    }
}

static void put_file_by_copy(int fd, int file, off_t size) {
    char *unit = malloc(UNIT);
    for (off_t at = 0; at < size;) {
        ssize_t got = pread(file, unit, UNIT, at);
        if (got <= 0) fail("pread");
        put_all(fd, unit, got);
        at += got;
    }
    free(unit);
}

static void put_file_by_kernel(int fd, int file, off_t size) {
    for (off_t at = 0; at < size;)
        if (sendfile(fd, file, &at, (size_t)(size - at)) <= 0) fail("sendfile");
}

static void take_answer(int fd) {
    char text[4096] = "";
#ifdef WITH_TLS
    ssize_t got = ssl ? SSL_read(ssl, text, sizeof text - 1) : recv(fd, text, sizeof text - 1, 0);
#else
    ssize_t got = recv(fd, text, sizeof text - 1, 0);
#endif
    if (got < 12 || memcmp(text + 9, "200", 3)) fail("answer");
}

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: see floor.c\n"), 2;
    struct stat facts;
    char head[256];
    int file = open(argv[3], O_RDONLY), fd = dial(atoi(argv[2]));
    if (file < 0 || fstat(file, &facts)) fail(argv[3]);
    if (!strcmp(argv[1], "tls")) begin_tls(fd);
    int size = snprintf(head, sizeof head, "PUT /bench/floor HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Content-Length: %lld\r\n\r\n", (long long)facts.st_size);
    put_all(fd, head, size);
    if (!strcmp(argv[1], "sendfile")) put_file_by_kernel(fd, file, facts.st_size);
    else put_file_by_copy(fd, file, facts.st_size);
    take_answer(fd);
    return 0;
}
