/* Shared declarations of the peer: the words of a line, answers, and the objects of a device. */
#pragma once
#include <errno.h>
#include <infiniband/efadv.h>
#include <infiniband/verbs.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Memory that other processes can map: a file, and its address in this process. */
struct buffer {
	int fd;
	uint8_t *bytes;
};

/* An open device with one object of each kind. */
struct rail {
	struct ibv_context *device;
	struct efadv_device_attr limits;
	struct ibv_pd *pd;
	struct ibv_comp_channel *channel;
	struct ibv_cq_ex *cq;
	struct ibv_comp_cntr *counter;
	struct buffer buffer;
	struct ibv_mr *mr;
	uint8_t *memory; /* registered */
	uint64_t iova;	 /* the device's address of it */
	struct ibv_qp *qp;
	struct efadv_wq_attr ring;
	struct ibv_ah *ah;
	uint32_t peer_qpn, peer_qkey;
};

/* The device that the current line is about. */
extern struct rail *rail;

/* Return true if the line has this word; the number in KEY=NUMBER, or 0; the line's word at this index. */
bool has(const char *word);
uint64_t number(const char *key);
const char *word(int index);

/* Answer a line that failed; answer a line with the result of a call that returns an error number. */
void error(const char *what, int code);
void answer(const char *what, int code);

/* external.c */
void create_buffer(void);
void say_bytes(void);
void set_external_cq(struct efadv_cq_init_attr *attr);
void register_dmabuf(void);
void create_counter(void);
void change_counter(void);
void say_count(void);

/* processes.c */
void fork_child(void);
void end_child(void);
void run_command(void);
void say_room(void);
