//go:build linux

package qemu

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"unicode/utf16"
)

// The seed of a disk image is a FAT16 file system of this size: NoCloud looks at
// FAT and ISO 9660 only. See Microsoft's "FAT General Overview of On-Disk Format".
const (
	fatSectors    = 32 << 20 / fatSector
	fatSector     = 512
	fatPerCluster = 8
	fatCluster    = fatPerCluster * fatSector
	fatRootFiles  = 512
	fatTable      = 32 // sectors of the one table
	fatFirst      = 1 + fatTable + fatRootFiles*32/fatSector
	// fatLabel is what NoCloud looks for.
	fatLabel = "CIDATA     "
)

// fatFile is a file in the root of a file system.
type fatFile struct {
	name    string
	content []byte
}

// writeFAT writes a new file system with these files. Between them it has holes.
func writeFAT(f *os.File, files []fatFile) error {
	table := binary.LittleEndian.AppendUint32(nil, 0xfffffff8)
	root := append([]byte(fatLabel), make([]byte, 21)...)
	root[11] = 0x08 // a volume's label
	at := int64(fatFirst * fatSector)
	for i, file := range files {
		clusters := (len(file.content) + fatCluster - 1) / fatCluster
		first := len(table) / 2
		if clusters == 0 {
			first = 0
		}
		for n := range clusters {
			next := uint16(len(table)/2 + 1)
			if n == clusters-1 {
				next = 0xffff
			}
			table = binary.LittleEndian.AppendUint16(table, next)
		}
		if at+int64(clusters)*fatCluster > fatSectors*fatSector || len(table) > fatTable*fatSector {
			return fmt.Errorf("write the seed: %s does not fit", file.name)
		}
		root = append(root, fatEntries(i, file, first)...)
		if _, err := f.WriteAt(file.content, at); err != nil {
			return err
		}
		at += int64(clusters) * fatCluster
	}
	if len(root) > fatRootFiles*32 {
		return fmt.Errorf("write the seed: %d files are too many", len(files))
	}
	for _, part := range []struct {
		at      int64
		content []byte
	}{{0, fatBoot()}, {fatSector, table}, {(1 + fatTable) * fatSector, root}} {
		if _, err := f.WriteAt(part.content, part.at); err != nil {
			return err
		}
	}
	return f.Truncate(fatSectors * fatSector)
}

// fatBoot is the first sector.
func fatBoot() []byte {
	b := make([]byte, fatSector)
	copy(b, "\xeb\x3c\x90VENDETTA")
	binary.LittleEndian.PutUint16(b[11:], fatSector)
	b[13] = fatPerCluster
	binary.LittleEndian.PutUint16(b[14:], 1) // reserved: this one
	b[16] = 1                                // tables
	binary.LittleEndian.PutUint16(b[17:], fatRootFiles)
	b[21] = 0xf8
	binary.LittleEndian.PutUint16(b[22:], fatTable)
	binary.LittleEndian.PutUint32(b[32:], fatSectors)
	b[36], b[38] = 0x80, 0x29
	binary.LittleEndian.PutUint32(b[39:], 0x76656e64)
	copy(b[43:], fatLabel)
	copy(b[54:], "FAT16   ")
	b[510], b[511] = 0x55, 0xaa
	return b
}

// fatEntries are a file's entries in the folder: its long name in pieces of 13
// letters, the last piece first, and a short one that nobody uses.
func fatEntries(index int, file fatFile, first int) []byte {
	short := fmt.Sprintf("FILE%04d   ", index)
	var sum byte
	for _, c := range []byte(short) {
		sum = sum>>1 | sum<<7
		sum += c
	}
	letters := append(utf16.Encode([]rune(file.name)), 0)
	for len(letters)%13 != 0 {
		letters = append(letters, 0xffff)
	}
	if len(file.name)%13 == 0 {
		letters = letters[:len(file.name)]
	}
	var all []byte
	pieces := len(letters) / 13
	for piece := pieces; piece > 0; piece-- {
		e := make([]byte, 32)
		e[0], e[11], e[13] = byte(piece), 0x0f, sum
		if piece == pieces {
			e[0] |= 0x40
		}
		for i, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
			binary.LittleEndian.PutUint16(e[at:], letters[(piece-1)*13+i])
		}
		all = append(all, e...)
	}
	e := make([]byte, 32)
	copy(e, short)
	binary.LittleEndian.PutUint16(e[24:], 1<<5|1) // the first day that there is
	binary.LittleEndian.PutUint16(e[26:], uint16(first))
	binary.LittleEndian.PutUint32(e[28:], uint32(len(file.content)))
	return append(all, e...)
}

// readFile is os.ReadFile with a bound.
func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(raw)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return raw, err
}
