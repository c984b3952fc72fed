// Kernels that do the same as ours in `measure.rs`, with the vendor's device functions (efa-dp-direct), called as their interface requires.
//
//     nvcc -O3 -arch=sm_90 -ptx -I FOLDER/CUDA/common -I FOLDER/CUDA/device -o dp_direct.ptx dp_direct.cu

#include <efa_cuda_dp_impl.cuh>

// `SendRingHandle` and `CompletionRingHandle` of efa-io, and `Work` of efa-gpu-kernels.
struct SendRing {
    uint64_t ring, doorbell;
    uint32_t mask, shift;
    uint16_t wqe_size, qpn;
    uint32_t cq, max_batch, producer, credits, req_id_64;
    uint32_t limits[4];
};
struct CompletionRing {
    uint64_t ring, doorbell;
    uint32_t mask;
    uint16_t shift, cqe_size;
    uint32_t consumer, tag;
};
struct Work {
    uint32_t ah, qpn, qkey, lkey, rkey, length;
    uint64_t local, remote;
};

static __device__ uint64_t now() {
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

// Does what the vendor's host code does in `efa_cuda_create_qp`.
extern "C" __global__ void dp_create(efa_cuda_qp *qp, const SendRing *handle) {
    memset(qp, 0, sizeof *qp);
    efa_cuda_wq *wq = &qp->sq.wq;
    wq->buf = (uint8_t *)handle->ring;
    wq->db = (uint32_t *)handle->doorbell;
    wq->max_wqes = handle->mask + 1;
    wq->max_batch = handle->max_batch;
    wq->queue_mask = handle->mask;
    wq->queue_size_shift = handle->shift;
    qp->sq.max_inline_data = 32;
    qp->sq.max_rdma_sges = 2;
}

static __device__ void request(efa_io_tx_wqe *wqe, const Work *work, uint32_t number) {
    uint64_t at = (uint64_t)number * 64;
    efa_cuda_init_rdma_write_wr(wqe, number, work->rkey, work->remote + at);
    efa_cuda_wr_set_remote(wqe, work->ah, work->qpn, work->qkey);
    efa_cuda_wr_set_sge(wqe, work->lkey, work->local + at, work->length);
}

extern "C" __global__ void dp_post_thread(efa_cuda_qp *qp, const Work *work_at, uint32_t count, uint32_t batch, uint64_t *elapsed) {
    Work work = *work_at;
    uint64_t start = now();
    for (uint32_t i = 0; i < count; i += batch) {
        efa_cuda_start_sq_batch(qp, batch);
        for (uint32_t ahead = 0; ahead < batch; ahead++) {
            efa_io_tx_wqe wqe;
            request(&wqe, &work, i + ahead);
            efa_cuda_sq_batch_place_wr(qp, ahead, &wqe);
        }
        efa_cuda_flush_sq_wrs(qp);
    }
    *elapsed = now() - start;
}

extern "C" __global__ void dp_post_warp(efa_cuda_qp *qp, const Work *work_at, uint32_t count, uint32_t rounds, uint64_t *elapsed) {
    Work work = *work_at;
    uint32_t lane = threadIdx.x;
    uint64_t start = now();
    for (uint32_t i = 0; i < count; i += rounds) {
        if (lane == 0)
            efa_cuda_start_sq_batch(qp, 32 * rounds);
        __syncwarp();
        for (uint32_t round = 0; round < rounds; round++) {
            efa_io_tx_wqe wqe;
            request(&wqe, &work, (i + round) * 32 + lane);
            efa_cuda_sq_batch_place_wr(qp, round * 32 + lane, &wqe);
        }
        // Orders every lane's stores before the doorbell, which one lane rings.
        __threadfence_system();
        __syncwarp();
        if (lane == 0)
            efa_cuda_flush_sq_wrs(qp);
        __syncwarp();
    }
    if (lane == 0)
        *elapsed = now() - start;
}

static __device__ efa_cuda_cq open(const CompletionRing *handle) {
    efa_cuda_cq cq = {};
    cq.entry_size = handle->cqe_size;
    cq.num_entries = handle->mask + 1;
    cq.queue_mask = handle->mask;
    cq.queue_size_shift = handle->shift;
    cq.phase = 1;
    cq.buf = (uint8_t *)handle->ring;
    return cq;
}

extern "C" __global__ void dp_poll_thread(const CompletionRing *handle, uint32_t count, uint64_t *elapsed) {
    efa_cuda_cq cq = open(handle);
    uint32_t good = 0;
    uint64_t start = now();
    for (uint32_t taken = 0; taken < count; taken++) {
        void *entry = efa_cuda_cq_poll(&cq, 0);
        if (!entry)
            break;
        good += efa_cuda_wc_read_vendor_err(entry) == 0 && efa_cuda_wc_read_qp_num(entry) == 5;
        efa_cuda_cq_pop(&cq, 1);
    }
    *elapsed = good == count ? now() - start : 0;
}

extern "C" __global__ void dp_poll_warp(const CompletionRing *handle, uint32_t count, uint64_t *elapsed) {
    efa_cuda_cq cq = open(handle);
    uint32_t good = 0, taken = 0;
    uint64_t start = now();
    while (taken < count) {
        void *entry = efa_cuda_cq_poll(&cq, threadIdx.x);
        uint32_t fresh = __ffs(~__ballot_sync(~0u, entry != nullptr)) - 1;
        if (fresh == 0)
            break;
        if (fresh > 32)
            fresh = 32;
        bool fine = entry && efa_cuda_wc_read_vendor_err(entry) == 0 && efa_cuda_wc_read_qp_num(entry) == 5;
        good += __popc(__ballot_sync(~0u, fine));
        efa_cuda_cq_pop(&cq, fresh);
        taken += fresh;
    }
    if (threadIdx.x == 0)
        *elapsed = good >= count ? now() - start : 0;
}
