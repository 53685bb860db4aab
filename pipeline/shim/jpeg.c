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

/* Takes a row of `count` blocks of a component, natural order, by their place. 0 stops. */
typedef int (*picture_sink)(void *context, uint32_t component, uint32_t row,
                            const int16_t (*blocks)[DCTSIZE2], size_t count);

/* What the library complained of while it went on, by kind. */
struct picture_warnings {
  uint32_t junk;        /* bytes of no segment, in the headers or behind the picture's data */
  uint32_t stray;       /* bytes left over within the data: before a restart marker, between scans */
  uint32_t cut;         /* data that end before their MCUs, scans that never came */
  uint32_t no_end;      /* the bytes end without an end marker */
  uint32_t code;        /* a code that the tables do not have */
  uint32_t restart;     /* a restart marker that is missing or out of turn */
  uint32_t progression; /* scans that do not follow from each other */
  uint32_t behind;      /* errors behind the picture's last MCU */
  uint32_t notes;       /* JFIF's version, Adobe's transform, the numbers in a sequential scan's header */
  uint32_t other;
};

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

struct picture_component {
  uint32_t across, down;         /* in blocks */
  uint32_t horizontal, vertical; /* sampling factors */
  uint16_t quantisers[DCTSIZE2];
};

struct picture_frame {
  uint32_t width, height, space, count;
  uint32_t scan[MAX_COMPS_IN_SCAN]; /* components of the current scan */
  struct picture_component components[MAX_COMPONENTS];
};

struct picture {
  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  jmp_buf out;
  int status;
  int lenient; /* warnings are only counted */
  int behind;  /* what goes wrong now stands behind the picture */
  struct picture_warnings warnings;
  void *(*allocate)(j_common_ptr, int, size_t);
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
  leave(picture, code == JWRN_HIT_MARKER || code == JERR_INPUT_EOF || picture->warnings.no_end > 0 ?
                 PICTURE_CUT : PICTURE_BAD);
}

/* Where a warning is counted. */
static uint32_t *kind(struct picture *picture)
{
  struct picture_warnings *warnings = &picture->warnings;
  int marker = picture->errors.msg_parm.i[1];

  switch (picture->errors.msg_code) {
  case JWRN_EXTRANEOUS_DATA:
    if (marker == JPEG_EOI || picture->jpeg.input_scan_number == 0)
      return &warnings->junk;
    if (jpeg_has_multiple_scans(&picture->jpeg) || (marker >= JPEG_RST0 && marker <= JPEG_RST0 + 7))
      return &warnings->stray;
    return &warnings->junk;
  case JWRN_HIT_MARKER:
    return &warnings->cut;
  case JWRN_JPEG_EOF:
    return &warnings->no_end;
  case JWRN_HUFF_BAD_CODE:
  case JWRN_ARITH_BAD_CODE:
    return &warnings->code;
  case JWRN_MUST_RESYNC:
    return &warnings->restart;
  case JWRN_BOGUS_PROGRESSION:
    return &warnings->progression;
  case JWRN_JFIF_MAJOR:
  case JWRN_ADOBE_XFORM:
  case JWRN_NOT_SEQUENTIAL:
    return &warnings->notes;
  default:
    return &warnings->other;
  }
}

/* Most warnings are of damage, and the library would fill with grey. No damage are notes, junk that
 * hides none, and a missing end marker where nothing else is: `is_whole` looks. */
static void on_message(j_common_ptr jpeg, int level)
{
  struct picture *picture = jpeg->client_data;
  struct picture_warnings *warnings = &picture->warnings;
  uint32_t *count;

  if (level >= 0)
    return;
  count = kind(picture);
  ++*count;
  if (!picture->lenient && count != &warnings->junk && count != &warnings->no_end &&
      count != &warnings->notes)
    on_error(jpeg);
}

/* Whether all coefficients came, of which a missing end marker makes one doubt. */
static int is_whole(j_decompress_ptr jpeg)
{
  if (jpeg->arith_code)
    return 0; /* arithmetic data that end early decode as if zeros followed */
  if (!jpeg_has_multiple_scans(jpeg))
    return 1; /* what is missing in the one scan has its own warning */
  for (int n = 0; n < jpeg->num_components; n++) {
    if (jpeg->comp_info[n].quant_table == NULL)
      return 0; /* no scan of it came; nor is there any in a lossless file */
    for (int k = 0; jpeg->coef_bits != NULL && k < DCTSIZE2; k++) {
      if (jpeg->coef_bits[n][k] != 0)
        return 0;
    }
  }
  return 1;
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

/* The library keeps tables from one picture to the next, as if it were part of the same stream: a
 * file without tables would decode by those of whatever came before. Here they live as long as
 * their picture. */
static void *allocate(j_common_ptr jpeg, int pool, size_t size)
{
  struct picture *picture = jpeg->client_data;

  return picture->allocate(jpeg, pool == JPOOL_PERMANENT ? JPOOL_IMAGE : pool, size);
}

static int create(struct picture *picture)
{
  static const uint8_t nothing[1];

  picture->jpeg.err = jpeg_std_error(&picture->errors);
  picture->errors.error_exit = on_error;
  picture->errors.emit_message = on_message;
  picture->progress.progress_monitor = on_progress;
  picture->jpeg.client_data = picture;
  if (setjmp(picture->out))
    return 0;
  jpeg_create_decompress(&picture->jpeg);
  picture->jpeg.progress = &picture->progress;
  jpeg_mem_src(&picture->jpeg, nothing, sizeof(nothing)); /* the last that stays for good */
  picture->allocate = picture->jpeg.mem->alloc_small;
  picture->jpeg.mem->alloc_small = allocate;
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

/* Begins with the headers of a file. */
static void open_file(struct picture *picture, const uint8_t *bytes, size_t length, int lenient)
{
  j_decompress_ptr jpeg = &picture->jpeg;

  jpeg_abort_decompress(jpeg);
  for (int n = 0; n < NUM_QUANT_TBLS; n++)
    jpeg->quant_tbl_ptrs[n] = NULL;
  for (int n = 0; n < NUM_HUFF_TBLS; n++)
    jpeg->dc_huff_tbl_ptrs[n] = jpeg->ac_huff_tbl_ptrs[n] = NULL;
  picture->lenient = lenient;
  picture->behind = 0;
  memset(&picture->warnings, 0, sizeof(picture->warnings));
  jpeg_mem_src(jpeg, bytes, length);
  jpeg_read_header(jpeg, TRUE);
}

/* Refuses what a lenient reader should not be troubled with. */
static void check_pixels(struct picture *picture, uint64_t most)
{
  if ((uint64_t)picture->jpeg.image_width * picture->jpeg.image_height <= most)
    return;
  strcpy(picture->message, "more pixels than are allowed");
  leave(picture, PICTURE_BAD);
}

/* Reads the headers of a picture, and makes ready to decode it at 1/`divisor`. It must be of the
 * given size; or, where `lenient` is not 0, of no more pixels than that, and warnings are only
 * counted. The bytes must stay until picture_read has returned. */
int picture_start(struct picture *picture, const uint8_t *bytes, size_t length, uint32_t width,
                  uint32_t height, uint32_t divisor, uint64_t lenient,
                  struct picture_layout *layout)
{
  j_decompress_ptr jpeg = &picture->jpeg;

  if (setjmp(picture->out)) {
    jpeg_abort_decompress(jpeg);
    return picture->status;
  }
  open_file(picture, bytes, length, lenient != 0);
  if (lenient != 0)
    check_pixels(picture, lenient);
  else if (jpeg->image_width != width || jpeg->image_height != height) {
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

/* The components of the picture that was started. */
void picture_components(const struct picture *picture, struct picture_frame *frame)
{
  const struct jpeg_decompress_struct *jpeg = &picture->jpeg;

  frame->width = jpeg->image_width;
  frame->height = jpeg->image_height;
  frame->space = jpeg->jpeg_color_space;
  frame->count = (uint32_t)jpeg->num_components;
  for (int n = 0; n < jpeg->comps_in_scan; n++)
    frame->scan[n] = (uint32_t)jpeg->cur_comp_info[n]->component_index;
  for (int n = 0; n < jpeg->num_components; n++) {
    struct picture_component *component = &frame->components[n];
    const jpeg_component_info *info = &jpeg->comp_info[n];

    component->across = info->width_in_blocks;
    component->down = info->height_in_blocks;
    component->horizontal = (uint32_t)info->h_samp_factor;
    component->vertical = (uint32_t)info->v_samp_factor;
    if (info->quant_table != NULL)
      memcpy(component->quantisers, info->quant_table->quantval, sizeof(component->quantisers));
  }
}

/* The warnings since the start of the last picture. */
void picture_warnings(const struct picture *picture, struct picture_warnings *warnings)
{
  *warnings = picture->warnings;
}

/* Reads the coefficients of a whole file by the library alone, going on after warnings. What they
 * are of is said in `frame`, then `sink` gets them row after row, one component after the other. */
int picture_coefficients(struct picture *picture, const uint8_t *bytes, size_t length,
                         uint64_t most_pixels, struct picture_frame *frame, picture_sink sink,
                         void *context)
{
  j_decompress_ptr jpeg = &picture->jpeg;
  jvirt_barray_ptr *arrays;

  if (setjmp(picture->out)) {
    jpeg_abort_decompress(jpeg);
    return picture->status;
  }
  open_file(picture, bytes, length, 1);
  check_pixels(picture, most_pixels);
  arrays = jpeg_read_coefficients(jpeg);
  if (picture->warnings.no_end > 0 && !is_whole(jpeg))
    picture->warnings.cut++;
  picture_components(picture, frame);
  for (int n = 0; n < jpeg->num_components; n++) {
    const jpeg_component_info *info = &jpeg->comp_info[n];

    for (JDIMENSION row = 0; row < info->height_in_blocks; row++) {
      JBLOCKARRAY blocks =
        jpeg->mem->access_virt_barray((j_common_ptr)jpeg, arrays[n], row, 1, FALSE);

      if (!sink(context, (uint32_t)n, row, (const int16_t (*)[DCTSIZE2])blocks[0],
                info->width_in_blocks))
        leave(picture, PICTURE_STOPPED);
    }
  }
  jpeg_abort_decompress(jpeg);
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
    picture->warnings.behind += (uint32_t)picture->behind;
    return picture->lenient && picture->behind ? PICTURE_OK : picture->status;
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
  if (source == NULL) {
    int whole = is_whole(jpeg);

    picture->behind = 1;
    jpeg_finish_decompress(jpeg);
    if (picture->warnings.no_end > 0 && !whole) {
      picture->warnings.cut++;
      strcpy(picture->message, "the end marker is missing, and scans or codes may be");
      return picture->lenient ? PICTURE_OK : PICTURE_CUT;
    }
  } else
    jpeg_abort_decompress(jpeg);
  return PICTURE_OK;
}
