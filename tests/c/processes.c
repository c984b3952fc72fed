/* Child processes, and the objects that they leave on a device. */
#include "peer.h"
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void say_end(int status)
{
	printf("exited %d\n", status);
}

/* Forks. The child executes the lines until `exit` or `die`; meanwhile the parent waits. */
void fork_child(void)
{
	pid_t child = fork();
	int status;

	if (child < 0)
		return error("fork", errno);
	if (child == 0) {
		puts("forked");
	} else {
		waitpid(child, &status, 0);
		say_end(status);
	}
}

/* Ends the child. The waiting parent answers. */
void end_child(void)
{
	if (!strcmp(word(0), "die"))
		kill(getpid(), SIGKILL);
	exit(0);
}

void run_command(void)
{
	say_end(system(word(1)));
}

/* More than the number of objects of each kind below on any device. */
#define MOST 4096

static void *make_pd(void)
{
	return ibv_alloc_pd(rail->device);
}

static void *make_cq(void)
{
	return ibv_create_cq(rail->device, 1, NULL, NULL, 0);
}

static void *make_qp(void)
{
	struct ibv_qp_init_attr attr = {
		.send_cq = ibv_cq_ex_to_cq(rail->cq), .recv_cq = ibv_cq_ex_to_cq(rail->cq),
		.cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_UD, .sq_sig_all = 1,
	};

	return ibv_create_qp(rail->pd, &attr);
}

static void *make_counter(void)
{
	struct ibv_comp_cntr_init_attr attr = { .type = IBV_COMP_CNTR_TYPE_WRS };

	return ibv_create_comp_cntr(rail->device, &attr);
}

static const struct {
	const char *name;
	void *(*make)(void);
	int (*destroy)(void *);
} kinds[] = {
	{ "pd", make_pd, (int (*)(void *))ibv_dealloc_pd },
	{ "cq", make_cq, (int (*)(void *))ibv_destroy_cq },
	{ "qp", make_qp, (int (*)(void *))ibv_destroy_qp },
	{ "counter", make_counter, (int (*)(void *))ibv_destroy_comp_cntr },
};

void say_room(void)
{
	static void *made[MOST];

	printf("room");
	for (size_t kind = 0; kind < sizeof(kinds) / sizeof(*kinds); kind++) {
		int count = 0, code = 0;

		while (count < MOST && (made[count] = kinds[kind].make()))
			count++;
		printf(" %s %d", kinds[kind].name, count);
		while (count && !code)
			code = kinds[kind].destroy(made[--count]);
		if (code)
			printf(" not destroyed: %s", strerror(code));
	}
	putchar('\n');
}
