package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// The header of a qcow2 image, as docs/interop/qcow2.txt of QEMU has it.
const (
	qcowMagic = "QFI\xfb"

	qcowExternalData = 1 << 2
	// qcowKnown are the incompatible features that are no danger: dirty bit,
	// compression type, extended table entries.
	qcowKnown = 1<<0 | 1<<3 | 1<<4

	qcowDataFileName = 0x44415441 // of a header extension
	maxExtensions    = 64
)

// formatOf finds out what a disk image is. A qcow2 image that leads to other
// files is refused: QEMU would open them, whatever they are on this machine.
func formatOf(f io.ReaderAt, size, virtual int64) (string, error) {
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	head = head[:n]
	if bytes.HasPrefix(head, []byte(qcowMagic)) {
		return "qcow2", checkQcow2(f, head, virtual)
	}
	for magic, what := range foreign {
		if bytes.HasPrefix(head, []byte(magic)) {
			return "", refuse("it is not a disk image in a format that is taken but %s", what)
		}
	}
	if size == 0 || size%512 != 0 {
		return "", refuse("it is not a disk image: %d bytes are not a number of sectors", size)
	}
	if size > virtual {
		return "", refuse("the disk has %d bytes, more than %d", size, virtual)
	}
	return "raw", nil
}

// foreign are beginnings of what people name by mistake.
var foreign = map[string]string{
	"KDMV":                   "VMDK",
	"# Disk Descriptor":      "VMDK",
	"vhdxfile":               "VHDX",
	"<<< ":                   "VDI",
	"QED\x00":                "QED",
	"\x1f\x8b":               "packed with gzip: unpack it first",
	"\xfd7zXZ\x00":           "packed with xz: unpack it first",
	"\x28\xb5\x2f\xfd":       "packed with zstd: unpack it first",
	"BZh":                    "packed with bzip2: unpack it first",
	"PK\x03\x04":             "packed with zip: unpack it first",
	"<!DOCTYPE":              "a web page",
	"<!doctype":              "a web page",
	"<html":                  "a web page",
	"<?xml":                  "an XML text",
	"-----BEGIN PGP SIGNED ": "a signed text",
}

func checkQcow2(f io.ReaderAt, head []byte, virtual int64) error {
	const version2, version3 = 72, 104
	if len(head) < version3 {
		return refuse("its qcow2 header is cut off")
	}
	u32 := func(at int) uint32 { return binary.BigEndian.Uint32(head[at:]) }
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(head[at:]) }
	version := u32(4)
	switch {
	case version != 2 && version != 3:
		return refuse("it is qcow2 of version %d, which is unknown", version)
	case u64(8) != 0 || u32(16) != 0:
		return refuse("it is a qcow2 image that leads to another file (a backing file)")
	case u32(20) < 9 || u32(20) > 21:
		return refuse("its qcow2 header makes no sense: clusters of 2^%d bytes", u32(20))
	case u64(24) == 0 || u64(24) > uint64(virtual):
		return refuse("the disk has %d bytes, and may have up to %d", u64(24), virtual)
	case u32(32) != 0:
		return refuse("it is an encrypted qcow2 image")
	}
	length := uint32(version2)
	if version == 3 {
		features := u64(72)
		length = u32(100)
		switch {
		case features&qcowExternalData != 0:
			return refuse("it is a qcow2 image that leads to another file (an external data file)")
		case features&^qcowKnown != 0:
			return refuse("it is a damaged qcow2 image, or has features that are unknown (%#x)", features)
		case length < version3 || length > 4096 || length%8 != 0:
			return refuse("its qcow2 header makes no sense: %d bytes long", length)
		}
	}
	return checkExtensions(f, int64(length))
}

// checkExtensions refuses a header that names a data file, whatever its bits say.
func checkExtensions(f io.ReaderAt, at int64) error {
	var head [8]byte
	for range maxExtensions {
		if _, err := f.ReadAt(head[:], at); err != nil {
			if errors.Is(err, io.EOF) {
				return refuse("its qcow2 header is cut off")
			}
			return err
		}
		kind, length := binary.BigEndian.Uint32(head[:]), int64(binary.BigEndian.Uint32(head[4:]))
		switch {
		case kind == 0:
			return nil
		case kind == qcowDataFileName:
			return refuse("it is a qcow2 image that leads to another file (an external data file)")
		case length > 1<<20:
			return refuse("its qcow2 header makes no sense: an extension of %d bytes", length)
		}
		at += 8 + (length+7)/8*8
	}
	return refuse("its qcow2 header makes no sense: more than %d extensions", maxExtensions)
}
