/* libjpeg-turbo's decompressor, with entropy-coded data from its own reader or from ours.
 *
 * The library leaves a failed call by longjmp. Every setjmp and longjmp is in this file and crosses
 * only frames of C: a reader of ours has returned before its failure is acted on. */
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jpeglib.h"
#include "jerror.h"

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER / 1000 != 3001
#error "shim/jpeg.c knows the entropy decoder of libjpeg-turbo 3.1: compare struct jpeg_entropy_decoder in jpegint.h, then allow this version"
#endif

/* The head of jpegint.h's struct; that header is not installed. */
struct jpeg_entropy_decoder {
  void (*start_pass)(j_decompress_ptr);
  boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
};

/* A progressive file may hold thousands of scans, each a pass over the whole picture. */
enum { MOST_SCANS = 200 };

/* How a call ended. Mirrored in libjpeg.rs, as are the structs and the callback below. */
enum { PICTURE_OK, PICTURE_CUT, PICTURE_BAD, PICTURE_STOPPED };

/* Writes the coefficients of the next MCU, natural order, into `count` blocks of zeros. 0 stops. */
typedef int (*picture_source)(void *context, int16_t (*blocks)[DCTSIZE2], size_t count);

struct picture_table {
  uint8_t lengths[16]; /* codes of 1 to 16 bits */
  uint8_t symbols[256];
};

struct picture_block {
  uint8_t component, dc, ac; /* its place in the scan, its tables */
  uint8_t detail;            /* 0 where the picture is so reduced that only DC shows */
};

struct picture_layout {
  uint32_t width, height, channels; /* of the rows that picture_read writes */
  uint32_t count;                   /* blocks in an MCU */
  struct picture_block blocks[D_MAX_BLOCKS_IN_MCU];
  struct picture_table dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
};

struct picture {
  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  jmp_buf out;
  int status;
  picture_source source;
  void *context;
  char message[JMSG_LENGTH_MAX];
};

static _Noreturn void leave(struct picture *picture, int status)
{
  picture->status = status;
  longjmp(picture->out, 1);
}

static void on_error(j_common_ptr jpeg)
{
  struct picture *picture = jpeg->client_data;
  int code = jpeg->err->msg_code;

  jpeg->err->format_message(jpeg, picture->message);
  leave(picture, code == JWRN_HIT_MARKER || code == JWRN_JPEG_EOF || code == JERR_INPUT_EOF ?
                 PICTURE_CUT : PICTURE_BAD);
}

/* Warnings are of damage, and the library would fill with grey. Junk before the end marker does no
 * harm: nothing is decoded after it. */
static void on_message(j_common_ptr jpeg, int level)
{
  struct jpeg_error_mgr *errors = jpeg->err;

  if (level >= 0 ||
      (errors->msg_code == JWRN_EXTRANEOUS_DATA && errors->msg_parm.i[1] == JPEG_EOI))
    return;
  on_error(jpeg);
}

static void on_progress(j_common_ptr jpeg)
{
  struct picture *picture = jpeg->client_data;

  if (((j_decompress_ptr)jpeg)->input_scan_number <= MOST_SCANS)
    return;
  snprintf(picture->message, sizeof(picture->message), "more than %d scans", MOST_SCANS);
  leave(picture, PICTURE_BAD);
}

/* The blocks that `mcu` points to lie one behind the other where there is one scan. */
static boolean next_mcu(j_decompress_ptr jpeg, JBLOCKROW *mcu)
{
  struct picture *picture = jpeg->client_data;

  if (!picture->source(picture->context, mcu[0], (size_t)jpeg->blocks_in_MCU))
    leave(picture, PICTURE_STOPPED);
  return TRUE;
}

static void copy_tables(JHUFF_TBL *const *from, struct picture_table *to)
{
  for (int n = 0; n < NUM_HUFF_TBLS; n++) {
    if (from[n] == NULL)
      continue;
    memcpy(to[n].lengths, from[n]->bits + 1, sizeof(to[n].lengths));
    memcpy(to[n].symbols, from[n]->huffval, sizeof(to[n].symbols));
  }
}

static void describe(j_decompress_ptr jpeg, struct picture_layout *layout)
{
  layout->width = jpeg->output_width;
  layout->height = jpeg->output_height;
  layout->channels = (uint32_t)jpeg->output_components;
  layout->count = (uint32_t)jpeg->blocks_in_MCU;
  for (int n = 0; n < jpeg->blocks_in_MCU; n++) {
    int component = jpeg->MCU_membership[n];
    const jpeg_component_info *info = jpeg->cur_comp_info[component];

    layout->blocks[n].component = (uint8_t)component;
    layout->blocks[n].dc = (uint8_t)info->dc_tbl_no;
    layout->blocks[n].ac = (uint8_t)info->ac_tbl_no;
    layout->blocks[n].detail = info->DCT_scaled_size > 1;
  }
  copy_tables(jpeg->dc_huff_tbl_ptrs, layout->dc);
  copy_tables(jpeg->ac_huff_tbl_ptrs, layout->ac);
}

static int create(struct picture *picture)
{
  picture->jpeg.err = jpeg_std_error(&picture->errors);
  picture->errors.error_exit = on_error;
  picture->errors.emit_message = on_message;
  picture->progress.progress_monitor = on_progress;
  picture->jpeg.client_data = picture;
  if (setjmp(picture->out))
    return 0;
  jpeg_create_decompress(&picture->jpeg);
  picture->jpeg.progress = &picture->progress;
  return 1;
}

/* A decompressor, or NULL where there is no memory. */
struct picture *picture_new(void)
{
  struct picture *picture = calloc(1, sizeof(*picture));

  if (picture == NULL || create(picture))
    return picture;
  free(picture);
  return NULL;
}

void picture_free(struct picture *picture)
{
  jpeg_destroy_decompress(&picture->jpeg);
  free(picture);
}

/* What went wrong last; valid until the next call. */
const char *picture_message(const struct picture *picture)
{
  return picture->message;
}

/* Reads the headers of a picture that must be of the given size, and makes ready to decode it at
 * 1/`divisor`. The bytes must stay until picture_read has returned. */
int picture_start(struct picture *picture, const uint8_t *bytes, size_t length, uint32_t width,
                  uint32_t height, uint32_t divisor, struct picture_layout *layout)
{
  j_decompress_ptr jpeg = &picture->jpeg;

  if (setjmp(picture->out)) {
    jpeg_abort_decompress(jpeg);
    return picture->status;
  }
  jpeg_abort_decompress(jpeg);
  jpeg_mem_src(jpeg, bytes, length);
  jpeg_read_header(jpeg, TRUE);
  if (jpeg->image_width != width || jpeg->image_height != height) {
    snprintf(picture->message, sizeof(picture->message), "two sizes in one file, %u x %u and %u x %u",
             width, height, jpeg->image_width, jpeg->image_height);
    leave(picture, PICTURE_BAD);
  }
  jpeg->scale_num = 1;
  jpeg->scale_denom = divisor;
  jpeg->dct_method = JDCT_ISLOW;
  jpeg->do_fancy_upsampling = TRUE;
  jpeg->out_color_space = jpeg->jpeg_color_space == JCS_CMYK || jpeg->jpeg_color_space == JCS_YCCK ?
                          JCS_CMYK : JCS_EXT_RGB;
  jpeg_start_decompress(jpeg);
  describe(jpeg, layout);
  return PICTURE_OK;
}

/* Writes all rows, `layout.height` of `layout.width` pixels of `layout.channels` bytes, to `out`.
 * With a source, coefficients come from it and nothing behind the headers is read. */
int picture_read(struct picture *picture, uint8_t *out, picture_source source, void *context)
{
  j_decompress_ptr jpeg = &picture->jpeg;
  size_t pitch = (size_t)jpeg->output_width * (size_t)jpeg->output_components;

  if (setjmp(picture->out)) {
    jpeg_abort_decompress(jpeg);
    return picture->status;
  }
  if (source != NULL) {
    if (jpeg_has_multiple_scans(jpeg) || jpeg->arith_code) {
      strcpy(picture->message, "not one scan of Huffman codes");
      leave(picture, PICTURE_BAD);
    }
    picture->source = source;
    picture->context = context;
    jpeg->entropy->decode_mcu = next_mcu;
  }
  while (jpeg->output_scanline < jpeg->output_height) {
    JSAMPROW rows[16];
    JDIMENSION left = jpeg->output_height - jpeg->output_scanline, count = left < 16 ? left : 16;

    for (JDIMENSION n = 0; n < count; n++)
      rows[n] = out + (jpeg->output_scanline + n) * pitch;
    jpeg_read_scanlines(jpeg, rows, count);
  }
  if (source == NULL)
    jpeg_finish_decompress(jpeg);
  else
    jpeg_abort_decompress(jpeg);
  return PICTURE_OK;
}
