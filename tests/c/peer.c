/*
 * A peer on the vendor's library: a program on libibverbs and libefa that executes commands, one in each line, and answers each line
 * with another. Tests drive it through its standard input and output.
 *
 *   open [NAME]                          device NAME gid GID mtu BYTES max_rdma BYTES inline BYTES caps BITS
 *   use N                                ok         (selects the Nth open device for the following lines; at first number 0)
 *   buffer len=N [unsealed] [udmabuf]    ok         (a memory file, for external memory and DMA-BUFs below, at offsets in it)
 *   bytes at=N len=N                     bytes HEX  (of that file)
 *   cq entries=N [channel] [external at=N len=N [blind]]
 *                                        ok
 *   counter [external [dmabuf] at=N errors=N]
 *                                        ok         (it counts all operations of queue pairs that are created later)
 *   set value=N [errors]                 ok         (the counter of completions, or of errors)
 *   add value=N [errors]                 ok
 *   memory len=N                         memory ADDR LKEY RKEY
 *   dmabuf at=N len=N iova=N             memory ADDR LKEY RKEY
 *   qp [ud] sq=N rq=N qkey=N [wide] [unsolicited] [hints]
 *                                        qp QPN entry BYTES entries N batch N caps BITS
 *   peer GID qpn=N qkey=N                ah N       (sets the destination of all requests)
 *   fill at=N len=N seed=N               ok
 *   check at=N len=N seed=N              match | differ INDEX
 *   recv id=N at=N len=N [at2=N len2=N]  ok
 *   send id=N at=N len=N [at2=N len2=N] [imm=N] [inline] [burst] [plain]
 *   write id=N at=N len=N to=ADDR rkey=N [imm=N] [inline] [burst]
 *   read id=N at=N len=N to=ADDR rkey=N [burst]
 *   poll ms=N [plain]                    none | wc id=N status=N vendor=N opcode=N qpn=N ... (see say_wc)
 *   arm                                  ok         (an event at the next completion)
 *   event ms=N                           event | none
 *   wqes first=N count=N                 wqes HEX   (entries of the send ring)
 *   count                                count COMPLETIONS ERRORS
 *   fork_init                            ok         (ibv_fork_init)
 *   fork                                 forked     (a child executes the lines until `exit` or `die`, which its parent answers)
 *   exit | die                           exited STATUS         (the child exits, or kills itself by SIGKILL)
 *   system COMMAND                       exited STATUS
 *   room                                 room KIND N KIND N ...    (how many more of each kind the device has)
 *   close                                ok         (destroys everything; a failure is an error)
 *
 * `plain` uses the older calls (ibv_post_send, ibv_poll_cq) instead of the extended ones. Offsets are relative to the memory. The answer to
 * a line that fails is "error" and a reason.
 */
#include "peer.h"
#include <arpa/inet.h>
#include <endian.h>
#include <poll.h>
#include <sys/mman.h>
#include <time.h>

static struct rail rails[8];
struct rail *rail = rails;

/* The words of a line; some of them are KEY=NUMBER. */
static char *words[16];
static int word_count;

bool has(const char *word)
{
	for (int i = 1; i < word_count; i++)
		if (!strcmp(words[i], word))
			return true;
	return false;
}

static const char *text_of(const char *key)
{
	size_t len = strlen(key);
	for (int i = 1; i < word_count; i++)
		if (!strncmp(words[i], key, len) && words[i][len] == '=')
			return words[i] + len + 1;
	return NULL;
}

uint64_t number(const char *key)
{
	const char *text = text_of(key);
	return text ? strtoull(text, NULL, 0) : 0;
}

const char *word(int index)
{
	return index < word_count ? words[index] : "";
}

void error(const char *what, int code)
{
	printf("error %s: %s\n", what, strerror(code));
}

void answer(const char *what, int code)
{
	if (code)
		error(what, code);
	else
		puts("ok");
}

/* Returns byte number `index` of the pattern that the tests compute, too. */
static uint8_t pattern(uint64_t seed, uint64_t index)
{
	uint64_t mixed = (seed * 0x9e3779b97f4a7c15 + index) * 0xbf58476d1ce4e5b9;
	return mixed >> 56;
}

static void open_device(void)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	struct ibv_port_attr port;
	union ibv_gid gid;
	char text[INET6_ADDRSTRLEN];
	int code = ENODEV;

	for (int i = 0; list && list[i] && !rail->device; i++)
		if (word_count == 1 || !strcmp(words[1], ibv_get_device_name(list[i])))
			rail->device = ibv_open_device(list[i]);
	if (list)
		ibv_free_device_list(list);
	if (!rail->device)
		return error("no such device", code);
	if ((code = efadv_query_device(rail->device, &rail->limits, sizeof(rail->limits))) ||
	    (code = ibv_query_port(rail->device, 1, &port)) || (code = ibv_query_gid(rail->device, 1, 0, &gid)))
		return error("asking the device", code);
	rail->pd = ibv_alloc_pd(rail->device);
	if (!rail->pd)
		return error("ibv_alloc_pd", errno);
	inet_ntop(AF_INET6, gid.raw, text, sizeof(text));
	printf("device %s gid %s mtu %u max_rdma %u inline %u caps %u\n", ibv_get_device_name(rail->device->device), text, port.max_msg_sz,
	       rail->limits.max_rdma_size, rail->limits.inline_buf_size_ex, rail->limits.device_caps);
}

static void create_cq(void)
{
	struct ibv_cq_init_attr_ex attr = { .cqe = number("entries"), .wc_flags = IBV_WC_STANDARD_FLAGS };
	struct efadv_cq_init_attr efa = { .wc_flags = EFADV_WC_EX_WITH_SGID | EFADV_WC_EX_WITH_IS_UNSOLICITED };

	if (has("channel") && !(rail->channel = ibv_create_comp_channel(rail->device)))
		return error("ibv_create_comp_channel", errno);
	attr.channel = rail->channel;
	if (has("external"))
		set_external_cq(&efa);
	rail->cq = efadv_create_cq(rail->device, &attr, &efa, sizeof(efa));
	answer("efadv_create_cq", rail->cq ? 0 : errno);
}

static void create_memory(void)
{
	size_t len = number("len");

	rail->memory = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (rail->memory == MAP_FAILED)
		return error("mmap", errno);
	rail->mr = ibv_reg_mr(rail->pd, rail->memory, len,
			IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_RELAXED_ORDERING);
	if (!rail->mr)
		return error("ibv_reg_mr", errno);
	rail->iova = (uint64_t)rail->memory;
	printf("memory %" PRIu64 " %u %u\n", rail->iova, rail->mr->lkey, rail->mr->rkey);
}

/* Returns all operations that a counter can count, without those that the device does not support. */
static int attach_counter(void)
{
	struct ibv_comp_cntr_caps caps = {};
	int code = ibv_query_comp_cntr_caps(rail->device, &caps);
	struct ibv_qp_attach_comp_cntr_attr attr = { .op_mask = caps.supported_qp_attach_ops };

	return code ? code : ibv_qp_attach_comp_cntr(rail->qp, rail->counter, &attr);
}

static int activate(uint32_t qkey)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .qkey = qkey, .port_num = 1 };
	int code = ibv_modify_qp(rail->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_QKEY);

	attr.qp_state = IBV_QPS_RTR;
	if (!code)
		code = ibv_modify_qp(rail->qp, &attr, IBV_QP_STATE);
	attr.qp_state = IBV_QPS_RTS;
	return code ? code : ibv_modify_qp(rail->qp, &attr, IBV_QP_STATE | IBV_QP_SQ_PSN);
}

static void create_qp(void)
{
	bool ud = has("ud"), wide = has("wide");
	struct ibv_qp_init_attr_ex attr = {
		.send_cq = ibv_cq_ex_to_cq(rail->cq), .recv_cq = ibv_cq_ex_to_cq(rail->cq),
		.cap = { .max_send_wr = number("sq"), .max_recv_wr = number("rq"), .max_send_sge = 2, .max_recv_sge = 2 },
		.qp_type = ud ? IBV_QPT_UD : IBV_QPT_DRIVER, .sq_sig_all = 1, .pd = rail->pd,
		.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
		.send_ops_flags = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM,
	};
	struct efadv_qp_init_attr efa = { .driver_qp_type = EFADV_QP_DRIVER_TYPE_SRD };
	struct efadv_wq_attr rq;
	int code;

	attr.cap.max_inline_data = wide ? rail->limits.inline_buf_size_ex : rail->limits.inline_buf_size;
	if (!ud && rail->limits.device_caps & EFADV_DEVICE_ATTR_CAPS_RDMA_READ)
		attr.send_ops_flags |= IBV_QP_EX_WITH_RDMA_READ;
	if (!ud && rail->limits.device_caps & EFADV_DEVICE_ATTR_CAPS_RDMA_WRITE)
		attr.send_ops_flags |= IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM;
	if (wide && !ud)
		efa.flags |= EFADV_QP_FLAGS_INLINE_WRITE;
	if (has("unsolicited"))
		efa.flags |= EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV;
	if (has("hints"))
		efa.wr_flags |= EFADV_WR_EX_WITH_PROCESSING_HINTS;
	rail->qp = ud ? ibv_create_qp_ex(rail->device, &attr) : efadv_create_qp_ex(rail->device, &attr, &efa, sizeof(efa));
	if (!rail->qp)
		return error("creating a queue pair", errno);
	if (rail->counter && (code = attach_counter()))
		return error("ibv_qp_attach_comp_cntr", code);
	if ((code = activate(number("qkey"))))
		return error("ibv_modify_qp", code);
	if ((code = efadv_query_qp_wqs(rail->qp, &rail->ring, &rq, sizeof(rail->ring))))
		return error("efadv_query_qp_wqs", code);
	printf("qp %u entry %u entries %u batch %u caps %u\n", rail->qp->qp_num, rail->ring.entry_size, rail->ring.num_entries,
	       rail->ring.max_batch, rail->ring.caps);
}

static void set_peer(void)
{
	struct ibv_ah_attr attr = { .is_global = 1, .port_num = 1 };
	struct efadv_ah_attr efa;
	int code;

	inet_pton(AF_INET6, words[1], attr.grh.dgid.raw);
	if (rail->ah && (code = ibv_destroy_ah(rail->ah)))
		return error("ibv_destroy_ah", code);
	rail->ah = ibv_create_ah(rail->pd, &attr);
	if (!rail->ah)
		return error("ibv_create_ah", errno);
	if ((code = efadv_query_ah(rail->ah, &efa, sizeof(efa))))
		return error("efadv_query_ah", code);
	rail->peer_qpn = number("qpn");
	rail->peer_qkey = number("qkey");
	printf("ah %u\n", efa.ahn);
}

static void fill(void)
{
	uint8_t *at = rail->memory + number("at");
	uint64_t len = number("len"), seed = number("seed");

	for (uint64_t i = 0; i < len; i++)
		at[i] = pattern(seed, i);
	puts("ok");
}

static void check(void)
{
	uint8_t *at = rail->memory + number("at");
	uint64_t len = number("len"), seed = number("seed");

	for (uint64_t i = 0; i < len; i++)
		if (at[i] != pattern(seed, i)) {
			printf("differ %" PRIu64 "\n", i);
			return;
		}
	puts("match");
}

/* Reads the pieces of memory that a line names, and returns their number. */
static int pieces(struct ibv_sge sge[2])
{
	sge[0] = (struct ibv_sge){ rail->iova + number("at"), number("len"), rail->mr->lkey };
	sge[1] = (struct ibv_sge){ rail->iova + number("at2"), number("len2"), rail->mr->lkey };
	return text_of("at2") ? 2 : 1;
}

static void post_recv(void)
{
	struct ibv_sge sge[2];
	struct ibv_recv_wr wr = { .wr_id = number("id"), .sg_list = sge, .num_sge = pieces(sge) }, *bad;

	answer("ibv_post_recv", ibv_post_recv(rail->qp, &wr, &bad));
}

static void post_plain(void)
{
	struct ibv_sge sge[2];
	struct ibv_send_wr wr = { .wr_id = number("id"), .sg_list = sge, .num_sge = pieces(sge), .opcode = IBV_WR_SEND }, *bad;

	wr.send_flags = IBV_SEND_SIGNALED | (has("inline") ? IBV_SEND_INLINE : 0);
	wr.wr.ud.ah = rail->ah;
	wr.wr.ud.remote_qpn = rail->peer_qpn;
	wr.wr.ud.remote_qkey = rail->peer_qkey;
	if (text_of("imm")) {
		wr.opcode = IBV_WR_SEND_WITH_IMM;
		wr.imm_data = htobe32(number("imm"));
	}
	answer("ibv_post_send", ibv_post_send(rail->qp, &wr, &bad));
}

static void post(void)
{
	struct ibv_qp_ex *qpx = ibv_qp_to_qp_ex(rail->qp);
	bool write = !strcmp(words[0], "write"), read = !strcmp(words[0], "read"), imm = text_of("imm");
	uint32_t rkey = number("rkey"), data = htobe32(number("imm"));
	uint64_t to = number("to");
	struct ibv_sge sge[2];
	int count = pieces(sge);

	if (has("plain"))
		return post_plain();
	ibv_wr_start(qpx);
	qpx->wr_id = number("id");
	qpx->wr_flags = IBV_SEND_SIGNALED;
	if (read)
		ibv_wr_rdma_read(qpx, rkey, to);
	else if (write && imm)
		ibv_wr_rdma_write_imm(qpx, rkey, to, data);
	else if (write)
		ibv_wr_rdma_write(qpx, rkey, to);
	else if (imm)
		ibv_wr_send_imm(qpx, data);
	else
		ibv_wr_send(qpx);
	if (has("inline"))
		ibv_wr_set_inline_data(qpx, rail->memory + number("at"), number("len"));
	else
		ibv_wr_set_sge_list(qpx, count, sge);
	ibv_wr_set_ud_addr(qpx, rail->ah, rail->peer_qpn, rail->peer_qkey);
	if (has("burst"))
		efadv_wr_set_processing_hints(efadv_qp_from_ibv_qp_ex(qpx), EFADV_WR_PROCESSING_HINT_BURST_PPS_SENSITIVE);
	answer("ibv_wr_complete", ibv_wr_complete(qpx));
}

/* Answers with a completion. Fields that only receives have are 0 in others. */
static void say_wc(const struct ibv_wc *wc, bool unsolicited, const char *sgid)
{
	bool recv = wc->opcode & IBV_WC_RECV, imm = recv && wc->wc_flags & IBV_WC_WITH_IMM;

	printf("wc id=%" PRIu64 " status=%d vendor=%u opcode=%d qpn=%u", wc->wr_id, wc->status, wc->vendor_err, wc->opcode, wc->qp_num);
	printf(" bytes=%u source=%u ah=%u", recv ? wc->byte_len : 0, recv ? wc->src_qp : 0, recv ? wc->slid : 0);
	if (imm)
		printf(" imm=%u", be32toh(wc->imm_data));
	if (unsolicited)
		printf(" unsolicited");
	if (sgid)
		printf(" sgid=%s", sgid);
	putchar('\n');
}

static bool poll_plain(void)
{
	struct ibv_wc wc;

	if (ibv_poll_cq(ibv_cq_ex_to_cq(rail->cq), 1, &wc) != 1)
		return false;
	say_wc(&wc, false, NULL);
	return true;
}

static bool poll_extended(void)
{
	struct ibv_poll_cq_attr attr = {};
	struct ibv_wc wc = {};
	union ibv_gid gid;
	char text[INET6_ADDRSTRLEN], *sgid = NULL;
	bool unsolicited = false;

	if (ibv_start_poll(rail->cq, &attr))
		return false;
	wc.wr_id = rail->cq->wr_id;
	wc.status = rail->cq->status;
	wc.vendor_err = ibv_wc_read_vendor_err(rail->cq);
	wc.opcode = ibv_wc_read_opcode(rail->cq);
	wc.qp_num = ibv_wc_read_qp_num(rail->cq);
	if (wc.opcode & IBV_WC_RECV) {
		wc.byte_len = ibv_wc_read_byte_len(rail->cq);
		wc.src_qp = ibv_wc_read_src_qp(rail->cq);
		wc.slid = ibv_wc_read_slid(rail->cq);
		wc.wc_flags = ibv_wc_read_wc_flags(rail->cq);
		if (wc.wc_flags & IBV_WC_WITH_IMM)
			wc.imm_data = ibv_wc_read_imm_data(rail->cq);
		unsolicited = efadv_wc_is_unsolicited(efadv_cq_from_ibv_cq_ex(rail->cq));
		if (!efadv_wc_read_sgid(efadv_cq_from_ibv_cq_ex(rail->cq), &gid))
			sgid = (char *)inet_ntop(AF_INET6, gid.raw, text, sizeof(text));
	}
	ibv_end_poll(rail->cq);
	say_wc(&wc, unsolicited, sgid);
	return true;
}

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void poll_cq(void)
{
	uint64_t end = now_ms() + number("ms");
	bool plain = has("plain");

	while (!(plain ? poll_plain() : poll_extended())) {
		if (now_ms() >= end) {
			puts("none");
			return;
		}
		/* The device and the other side need the processor, too. */
		nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL);
	}
}

static void wait_event(void)
{
	struct pollfd fd = { .fd = rail->channel->fd, .events = POLLIN };
	struct ibv_cq *which;
	void *context;

	if (poll(&fd, 1, number("ms")) != 1) {
		puts("none");
		return;
	}
	if (ibv_get_cq_event(rail->channel, &which, &context))
		return error("ibv_get_cq_event", errno);
	ibv_ack_cq_events(which, 1);
	puts(which == ibv_cq_ex_to_cq(rail->cq) ? "event" : "error event of another queue");
}

static void say_wqes(void)
{
	const struct efadv_wq_attr *ring = &rail->ring;
	uint64_t first = number("first"), count = number("count");

	printf("wqes ");
	for (uint64_t i = 0; i < count * ring->entry_size; i++)
		printf("%02x", ring->buffer[(first * ring->entry_size + i) % (ring->num_entries * ring->entry_size)]);
	putchar('\n');
}

static void use_rail(void)
{
	size_t index = strtoul(word(1), NULL, 0);

	if (index >= sizeof(rails) / sizeof(*rails))
		return error("use", ERANGE);
	rail = rails + index;
	puts("ok");
}

static void close_all(void)
{
	int code = 0;

	if ((rail->ah && (code = ibv_destroy_ah(rail->ah))) || (rail->qp && (code = ibv_destroy_qp(rail->qp))) ||
	    (rail->counter && (code = ibv_destroy_comp_cntr(rail->counter))) ||
	    (rail->cq && (code = ibv_destroy_cq(ibv_cq_ex_to_cq(rail->cq)))) ||
	    (rail->channel && (code = ibv_destroy_comp_channel(rail->channel))) || (rail->mr && (code = ibv_dereg_mr(rail->mr))) ||
	    (rail->pd && (code = ibv_dealloc_pd(rail->pd))))
		return error("destroying", code);
	code = rail->device ? ibv_close_device(rail->device) : 0;
	*rail = (struct rail){};
	answer("ibv_close_device", code);
}

static const struct {
	const char *name;
	void (*run)(void);
} commands[] = {
	{ "open", open_device },	{ "use", use_rail },	     { "buffer", create_buffer }, { "bytes", say_bytes },
	{ "cq", create_cq },		{ "counter", create_counter }, { "set", change_counter },  { "add", change_counter },
	{ "count", say_count },		{ "memory", create_memory }, { "dmabuf", register_dmabuf }, { "qp", create_qp },
	{ "peer", set_peer },		{ "fill", fill },	     { "check", check },	  { "recv", post_recv },
	{ "send", post },		{ "write", post },	     { "read", post },		  { "poll", poll_cq },
	{ "event", wait_event },	{ "wqes", say_wqes },	     { "fork", fork_child },	  { "exit", end_child },	  { "die", end_child },
	{ "system", run_command },	{ "room", say_room },	     { "close", close_all },
};

static void run_line(void)
{
	if (!strcmp(words[0], "fork_init"))
		return answer("ibv_fork_init", ibv_fork_init());
	if (!strcmp(words[0], "arm"))
		return answer("ibv_req_notify_cq", ibv_req_notify_cq(ibv_cq_ex_to_cq(rail->cq), 0));
	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		if (!strcmp(words[0], commands[i].name))
			return commands[i].run();
	printf("error no such command: %s\n", words[0]);
}

int main(void)
{
	char line[512];

	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof(line), stdin)) {
		word_count = 0;
		for (char *word = strtok(line, " \n"); word && word_count < 16; word = strtok(NULL, " \n"))
			words[word_count++] = word;
		if (word_count)
			run_line();
	}
}
