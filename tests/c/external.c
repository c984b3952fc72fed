/* External memory: DMA-BUFs, and the data that a device writes to them. */
#define _GNU_SOURCE
#include "peer.h"
#include <fcntl.h>
#include <linux/udmabuf.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Creates a real DMA-BUF of the memory file's pages. */
static int udmabuf_of(int memory, uint64_t len)
{
	struct udmabuf_create request = { .memfd = memory, .flags = UDMABUF_FLAGS_CLOEXEC, .size = len };
	int module = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);

	return module < 0 ? -1 : ioctl(module, UDMABUF_CREATE, &request);
}

void create_buffer(void)
{
	uint64_t len = number("len");
	int fd = memfd_create("peer", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, len) || (!has("unsealed") && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)))
		return error("a memory file", errno);
	rail->buffer.bytes = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (rail->buffer.bytes == MAP_FAILED)
		return error("mmap", errno);
	rail->buffer.fd = has("udmabuf") ? udmabuf_of(fd, len) : fd;
	answer("udmabuf", rail->buffer.fd < 0 ? errno : 0);
}

void say_bytes(void)
{
	const uint8_t *at = rail->buffer.bytes + number("at");

	printf("bytes ");
	for (uint64_t i = 0; i < number("len"); i++)
		printf("%02x", at[i]);
	putchar('\n');
}

void set_external_cq(struct efadv_cq_init_attr *attr)
{
	attr->flags |= EFADV_CQ_INIT_FLAGS_EXT_MEM_DMABUF;
	attr->ext_mem_dmabuf.buffer = has("blind") ? NULL : rail->buffer.bytes + number("at");
	attr->ext_mem_dmabuf.length = number("len");
	attr->ext_mem_dmabuf.offset = number("at");
	attr->ext_mem_dmabuf.fd = rail->buffer.fd;
}

void register_dmabuf(void)
{
	rail->memory = rail->buffer.bytes + number("at");
	rail->iova = number("iova");
	rail->mr = ibv_reg_dmabuf_mr(rail->pd, number("at"), number("len"), rail->iova, rail->buffer.fd,
				     IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ);
	if (!rail->mr)
		return error("ibv_reg_dmabuf_mr", errno);
	printf("memory %" PRIu64 " %u %u\n", rail->iova, rail->mr->lkey, rail->mr->rkey);
}

/* Returns the location of a word of the buffer, by address or by DMA-BUF. */
static struct efadv_memory_location word_at(uint64_t offset)
{
	struct efadv_memory_location place = { .type = EFADV_MEMORY_LOCATION_VA, .ptr = rail->buffer.bytes + offset };

	if (has("dmabuf")) {
		place.type = EFADV_MEMORY_LOCATION_DMABUF;
		place.dmabuf.offset = offset;
		place.dmabuf.fd = rail->buffer.fd;
	}
	return place;
}

void create_counter(void)
{
	struct ibv_comp_cntr_init_attr attr = { .type = IBV_COMP_CNTR_TYPE_WRS };
	struct efadv_comp_cntr_init_attr efa = {
		.flags = EFADV_COMP_CNTR_INIT_WITH_COMP_EXTERNAL_MEM | EFADV_COMP_CNTR_INIT_WITH_ERR_EXTERNAL_MEM,
	};

	if (has("external")) {
		efa.comp_cntr_ext_mem = word_at(number("at"));
		efa.err_cntr_ext_mem = word_at(number("errors"));
		rail->counter = efadv_create_comp_cntr(rail->device, &attr, &efa, sizeof(efa));
	} else {
		rail->counter = ibv_create_comp_cntr(rail->device, &attr);
	}
	answer("creating a completion counter", rail->counter ? 0 : errno);
}

void change_counter(void)
{
	struct ibv_comp_cntr *counter = rail->counter;
	uint64_t value = number("value");

	if (!strcmp(word(0), "set"))
		answer("setting", has("errors") ? ibv_set_err_comp_cntr(counter, value) : ibv_set_comp_cntr(counter, value));
	else
		answer("adding", has("errors") ? ibv_inc_err_comp_cntr(counter, value) : ibv_inc_comp_cntr(counter, value));
}

void say_count(void)
{
	uint64_t completions, errors;
	int code = ibv_read_comp_cntr(rail->counter, &completions);

	if (code || (code = ibv_read_err_comp_cntr(rail->counter, &errors)))
		return error("reading the counter", code);
	printf("count %" PRIu64 " %" PRIu64 "\n", completions, errors);
}
