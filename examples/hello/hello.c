/* A web server that answers every request with the text of one file, the name of the host that it
 * runs on, and how often it has been asked. One connection at a time; it ends on SIGTERM. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void stop(int signal) {
    (void)signal;
    _exit(0);
}

static void answer(int connection, const char *greeting, unsigned count) {
    char request[4096], host[256] = "", body[8192], head[256];
    if (read(connection, request, sizeof request) <= 0)
        return;
    gethostname(host, sizeof host - 1);
    int length = snprintf(body, sizeof body, "%sThis is %s, request %u.\n", greeting, host, count);
    if (length >= (int)sizeof body)
        length = sizeof body - 1;
    int head_length = snprintf(head, sizeof head,
                               "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                               "Content-Length: %d\r\nConnection: close\r\n\r\n",
                               length);
    if (write(connection, head, head_length) == head_length && write(connection, body, length) > 0)
        shutdown(connection, SHUT_WR);
}

int main(int argc, char **argv) {
    char greeting[4096] = "";
    FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
    if (!file) {
        fprintf(stderr, "usage: hello FILE\n");
        return 2;
    }
    greeting[fread(greeting, 1, sizeof greeting - 1, file)] = 0;
    fclose(file);
    signal(SIGTERM, stop); /* process 1 of a container has no default actions */
    signal(SIGINT, stop);
    signal(SIGPIPE, SIG_IGN);

    const char *port = getenv("PORT") ? getenv("PORT") : "8080";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) {
        perror("hello: listen");
        return 1;
    }
    printf("hello: listening on port %s\n", port);
    fflush(stdout);
    for (unsigned count = 1;; count++) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            continue;
        answer(connection, greeting, count);
        close(connection);
        printf("hello: request %u\n", count);
        fflush(stdout);
    }
}
