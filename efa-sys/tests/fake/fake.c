// A fake libibverbs and libefa in one file, with two devices, for tests. Objects are numbers and ordinary memory, and
// nothing is sent.
//
// Like the kernel, it refuses to destroy an object that another one uses (EBUSY). The device's attributes
// (ibv_query_device) report the number of objects of each kind, and how often an object was destroyed that did not
// exist any more.
//
// ibv_query_gid with an index of 256 or more is an order: from now on, this context refuses to destroy anything, with
// the error number index - 256. 256 takes that back.
//
// Structures are rdma-core's, as far as they are used; bindings.rs has them in full.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct device {
    void *ops[2];
    int node_type, transport_type;
    char name[64], dev_name[64], dev_path[256], ibdev_path[256];
};

// `struct ibv_context` has 32 operations in front of the fields that are used, and a mutex behind them.
struct context {
    struct device *device;
    void *ops[32];
    int cmd_fd, async_fd, num_comp_vectors;
    uint64_t mutex[5];
    void *abi_compat;
    // The fake's own.
    int refuse, pipe_end;
    int pds, mrs, ahs, cqs, qps, counters, channels;
    uint32_t next;
};

struct pd { struct context *context; uint32_t handle; int users; };
struct mr { struct context *context; struct pd *pd; void *addr; size_t length; uint32_t handle, lkey, rkey; };
struct ah { struct context *context; struct pd *pd; uint32_t handle; };
struct channel { struct context *context; int fd, refcnt, pipe_end, users; };
struct counter { struct context *context; uint32_t handle; int users; };
struct cq {
    struct context *context; struct channel *channel; void *cq_context; uint32_t handle; int cqe; uint64_t sync[16];
    int users; uint32_t entries; void *ring; size_t bytes;
};
struct qp {
    struct context *context; void *qp_context; struct pd *pd; struct cq *send_cq, *recv_cq; void *srq;
    uint32_t handle, qp_num;
    int state, type; uint64_t sync[16];
    struct counter *counter; void *rings; uint32_t sends, receives;
};
struct cap { uint32_t send_wr, recv_wr, send_sge, recv_sge, inline_bytes; };
struct qp_init { void *qp_context; struct cq *send_cq, *recv_cq; void *srq; struct cap cap; int type, sig_all; };
// The mask of set fields is in the padding in front of the domain.
struct qp_init_ex { struct qp_init init; struct pd *pd; };
struct cq_init_ex { uint32_t cqe; void *cq_context; struct channel *channel; };
struct efa_cq_init { uint64_t comp_mask, wc_flags, flags; uint8_t *buffer; uint64_t length, offset; int fd; };

static struct device devices[2] = {
    { .node_type = -1, .name = "fake0", .ibdev_path = "/sys/class/infiniband/fake0" },
    { .node_type = -1, .name = "fake1", .ibdev_path = "/sys/class/infiniband/fake1" },
};
// How often an object was destroyed that did not exist any more.
static int twice;

struct device **ibv_get_device_list(int *count) {
    struct device **list = calloc(3, sizeof *list);
    list[0] = &devices[0], list[1] = &devices[1];
    *count = 2;
    return list;
}
void ibv_free_device_list(struct device **list) { free(list); }

struct context *ibv_open_device(struct device *device) {
    struct context *context = calloc(1, sizeof *context);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) return NULL;
    context->device = device, context->async_fd = ends[0], context->pipe_end = ends[1], context->cmd_fd = -1;
    return context;
}
int ibv_close_device(struct context *context) {
    close(context->async_fd), close(context->pipe_end);
    // The context is kept, so that a test can count the objects that are left.
    return 0;
}

// Returns 0 if the object exists, nothing uses it, and there is no order to refuse.
static int destroy(struct context *context, int *count, uint32_t *handle, int users) {
    if (*handle == 0) { twice++; return EINVAL; }
    if (users) return EBUSY;
    if (context->refuse) return context->refuse;
    *handle = 0, --*count;
    return 0;
}
static uint32_t number(struct context *context, int *count) { ++*count; return ++context->next; }

int ibv_query_gid(struct context *context, uint8_t port, int index, uint8_t *gid) {
    if (index >= 256) context->refuse = index - 256;
    memset(gid, 0, 16);
    gid[0] = 0xfe, gid[1] = 0x80, gid[15] = 1 + (context->device - devices);
    return port == 1 ? 0 : EINVAL;
}
int ibv_query_device(struct context *context, char *attr) {
    memset(attr, 0, 232);
    // From max_qp on.
    int *max = (int *)(attr + 108);
    enum { QP, CQ = 5, CQE, MR, PD, EE = 15, RDD, MW, GRP = 20, AH = 23 };
    max[QP] = 64, max[CQE] = 1 << 15;
    max[CQ] = context->cqs, max[MR] = context->mrs, max[PD] = context->pds, max[AH] = context->ahs;
    max[EE] = context->qps, max[MW] = context->counters, max[RDD] = context->channels, max[GRP] = twice;
    return 0;
}
int ibv_query_port(struct context *context, uint8_t port, char *attr) {
    (void)context;
    *(int *)attr = 4;                   // active
    *(uint32_t *)(attr + 20) = 8192;    // max_msg_sz
    return port == 1 ? 0 : EINVAL;
}
int _ibv_query_comp_cntr_caps(struct context *context, uint64_t *caps, size_t size) {
    (void)context, (void)size;
    caps[0] = UINT64_MAX, *(uint32_t *)(caps + 1) = 16;
    return 0;
}
int ibv_get_async_event(struct context *context, void *event) {
    (void)context, (void)event;
    errno = EAGAIN;
    return -1;
}
void ibv_ack_async_event(void *event) { (void)event; }

struct pd *ibv_alloc_pd(struct context *context) {
    struct pd *pd = calloc(1, sizeof *pd);
    pd->context = context, pd->handle = number(context, &context->pds);
    return pd;
}
int ibv_dealloc_pd(struct pd *pd) { return destroy(pd->context, &pd->context->pds, &pd->handle, pd->users); }

struct mr *ibv_reg_mr(struct pd *pd, void *addr, size_t length, int access) {
    (void)access;
    struct mr *mr = calloc(1, sizeof *mr);
    mr->context = pd->context, mr->pd = pd, mr->addr = addr, mr->length = length, pd->users++;
    mr->handle = mr->lkey = mr->rkey = number(pd->context, &pd->context->mrs);
    return mr;
}
struct mr *ibv_reg_dmabuf_mr(struct pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access) {
    (void)fd;
    // Only DMA-BUFs from their beginning on are supported.
    if (offset) { errno = EOPNOTSUPP; return NULL; }
    return ibv_reg_mr(pd, (void *)iova, length, access);
}
int ibv_dereg_mr(struct mr *mr) {
    int answer = destroy(mr->context, &mr->context->mrs, &mr->handle, 0);
    if (!answer) mr->pd->users--;
    return answer;
}

struct ah *ibv_create_ah(struct pd *pd, void *attr) {
    (void)attr;
    struct ah *ah = calloc(1, sizeof *ah);
    ah->context = pd->context, ah->pd = pd, pd->users++, ah->handle = number(pd->context, &pd->context->ahs);
    return ah;
}
int ibv_destroy_ah(struct ah *ah) {
    int answer = destroy(ah->context, &ah->context->ahs, &ah->handle, 0);
    if (!answer) ah->pd->users--;
    return answer;
}

struct channel *ibv_create_comp_channel(struct context *context) {
    struct channel *channel = calloc(1, sizeof *channel);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC)) return NULL;
    channel->context = context, channel->fd = ends[0], channel->pipe_end = ends[1], context->channels++;
    return channel;
}
int ibv_destroy_comp_channel(struct channel *channel) {
    uint32_t handle = 1;
    int answer = destroy(channel->context, &channel->context->channels, &handle, channel->users);
    if (!answer) close(channel->fd), close(channel->pipe_end);
    return answer;
}
int ibv_get_cq_event(struct channel *channel, struct cq **cq, void **context) {
    (void)channel, (void)cq, (void)context;
    errno = EAGAIN;
    return -1;
}
void ibv_ack_cq_events(struct cq *cq, unsigned count) { (void)cq, (void)count; }

// Size of a completion in bytes. Old devices have smaller ones.
#ifdef SMALL
enum { ENTRY = 16 };
#else
enum { ENTRY = 32 };
#endif

struct cq *efadv_create_cq(struct context *context, struct cq_init_ex *init, struct efa_cq_init *efa, uint32_t size) {
    (void)size;
    if (init->cqe > 1 << 15) { errno = EINVAL; return NULL; }
    struct cq *cq = calloc(1, sizeof *cq);
    cq->context = context, cq->channel = init->channel, cq->handle = number(context, &context->cqs);
    if (cq->channel) cq->channel->users++;
    for (cq->entries = 1; cq->entries < init->cqe;) cq->entries *= 2;
    if (efa->flags) { cq->ring = efa->buffer; return cq; }
    // A file of its own, so that nothing else is in the mapping.
    int fd = memfd_create("ring", MFD_CLOEXEC);
    cq->bytes = ENTRY * cq->entries;
    if (fd < 0 || ftruncate(fd, cq->bytes)) return NULL;
    cq->ring = mmap(NULL, cq->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return cq;
}
int ibv_destroy_cq(struct cq *cq) {
    // libefa unmaps the ring before it asks the kernel, too.
    if (cq->bytes) munmap(cq->ring, cq->bytes), cq->bytes = 0;
    int answer = destroy(cq->context, &cq->context->cqs, &cq->handle, cq->users);
    if (!answer && cq->channel) cq->channel->users--;
    return answer;
}
struct cq_attr { uint64_t comp_mask; void *buffer; uint32_t entry_size, num_entries; void *doorbell; };
int efadv_query_cq(struct cq *cq, struct cq_attr *attr, uint32_t size) {
    (void)size;
    attr->buffer = cq->ring, attr->entry_size = ENTRY, attr->num_entries = cq->entries, attr->doorbell = NULL;
    return 0;
}

static struct qp *create_qp(struct pd *pd, struct qp_init *init) {
    if (init->cap.send_wr > 1 << 10 || init->cap.recv_wr > 1 << 10) { errno = EINVAL; return NULL; }
    struct qp *qp = calloc(1, sizeof *qp);
    struct context *context = pd->context;
    qp->context = context, qp->pd = pd, qp->send_cq = init->send_cq, qp->recv_cq = init->recv_cq;
    pd->users++, qp->send_cq->users++, qp->recv_cq->users++;
    qp->handle = qp->qp_num = number(context, &context->qps);
    for (qp->sends = 16; qp->sends < init->cap.send_wr;) qp->sends *= 2;
    for (qp->receives = 16; qp->receives < init->cap.recv_wr;) qp->receives *= 2;
    size_t bytes = 64 * qp->sends + 16 * qp->receives;
    qp->rings = aligned_alloc(4096, 4096 + (bytes + 4095) / 4096 * 4096);
    return qp;
}
struct qp *efadv_create_qp_ex(struct context *context, struct qp_init_ex *init, void *efa, uint32_t size) {
    (void)context, (void)efa, (void)size;
    return create_qp(init->pd, &init->init);
}
struct qp *efadv_create_driver_qp(struct pd *pd, struct qp_init *init, uint32_t type) {
    (void)type;
    return create_qp(pd, init);
}
int ibv_destroy_qp(struct qp *qp) {
    free(qp->rings), qp->rings = NULL;
    int answer = destroy(qp->context, &qp->context->qps, &qp->handle, 0);
    if (!answer) {
        qp->pd->users--, qp->send_cq->users--, qp->recv_cq->users--;
        if (qp->counter) qp->counter->users--;
    }
    return answer;
}
int ibv_modify_qp(struct qp *qp, void *attr, int mask) { (void)qp, (void)attr, (void)mask; return 0; }
struct wq_attr { struct cq_attr ring; uint32_t max_batch; uint16_t caps; };
int efadv_query_qp_wqs(struct qp *qp, struct wq_attr *sq, struct wq_attr *rq, uint32_t size) {
    (void)size;
    char *doorbells = qp->rings, *rings = doorbells + 4096;
    *sq = (struct wq_attr){ { 0, rings, 64, qp->sends, doorbells }, 16, 0 };
    *rq = (struct wq_attr){ { 0, rings + 64 * qp->sends, 16, qp->receives, doorbells + 4 }, 16, 0 };
    return 0;
}

struct counter *efadv_create_comp_cntr(struct context *context, void *attr, void *efa, uint32_t size) {
    (void)attr, (void)efa, (void)size;
    struct counter *counter = calloc(1, sizeof *counter);
    counter->context = context, counter->handle = number(context, &context->counters);
    return counter;
}
// Without it, the library creates counters that it cannot destroy.
#ifndef LACKS_DESTROY
int ibv_destroy_comp_cntr(struct counter *counter) {
    return destroy(counter->context, &counter->context->counters, &counter->handle, counter->users);
}
#endif
int ibv_qp_attach_comp_cntr(struct qp *qp, struct counter *counter, void *attr) {
    (void)attr;
    if (qp->counter) return EBUSY;
    qp->counter = counter, counter->users++;
    return 0;
}

int efadv_query_device(struct context *context, char *attr, uint32_t size) {
    (void)context;
    memset(attr, 0, size);
    uint32_t *words = (uint32_t *)attr;
    uint16_t *halves = (uint16_t *)(attr + 16);
    words[2] = words[3] = 1 << 10;
    halves[0] = halves[1] = 2, halves[2] = halves[3] = 32;
    words[6] = 1 | 8 | 32 | 64; // RDMA read and write, completion queues in DMA-BUFs, counters
    words[7] = 1 << 30;
    return 0;
}
int efadv_query_ah(struct ah *ah, uint64_t *attr, uint32_t size) {
    (void)size;
    *(uint16_t *)(attr + 1) = ah->handle;
    return 0;
}
