//go:build linux

package qemu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sourcegraph/conc"

	"github.com/vendetta-dev/vendetta/evals/testbed"
	"github.com/vendetta-dev/vendetta/providers"
)

// An overlay, whose base is nowhere, grows while no machine uses it, and keeps
// what it says of its base.
func TestOverlayGrows(t *testing.T) {
	testbed.Wants(t, Name)
	path := filepath.Join(t.TempDir(), rootDisk)
	if err := tool(t.Context(), nil, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "base", "-F", "raw", path, "1G"); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{1 << 30, 2 << 30, 1 << 30} {
		if err := growDisk(t.Context(), path, size); err != nil {
			t.Fatal(err)
		}
	}
	if size, err := ownSize(path); err != nil || size != 2<<30 {
		t.Errorf("it has %d bytes, %v", size, err)
	}
	if raw, err := os.ReadFile(path); err != nil || !strings.Contains(string(raw[:4096]), "base") {
		t.Errorf("its base is not named any more: %v", err)
	}
}

// A disk that names a file with its data, which no disk of ours does, is not
// opened: root would write into that file.
func TestDiskThatNamesAnotherFile(t *testing.T) {
	head := make([]byte, 512)
	copy(head, "QFI\xfb")
	binary.BigEndian.PutUint32(head[4:], 3)
	binary.BigEndian.PutUint64(head[24:], 1<<30)
	path := filepath.Join(t.TempDir(), rootDisk)
	write := func(content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(head)
	if size, err := ownSize(path); err != nil || size != 1<<30 {
		t.Errorf("%d, %v", size, err)
	}
	head[79] = 1 << 2
	write(head)
	if err := growDisk(t.Context(), path, 2<<30); err == nil || !strings.Contains(err.Error(), "not the disk that was made") {
		t.Errorf("it was grown: %v", err)
	}
	write(head[:40])
	if _, err := ownSize(path); err == nil {
		t.Error("a header that is cut off was read")
	}
	if err := growDisk(t.Context(), path+"-absent", 1); err == nil {
		t.Error("grew nothing")
	}
}

// A machine that does not run is made larger, and has the room when it runs. What
// listens on the node's loopback is out of its reach.
func TestMachineThatWasResizedAndIsFenced(t *testing.T) {
	p := realProvider(t, nil)
	ctx := t.Context()
	private, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving conc.WaitGroup
	defer serving.Wait()
	defer func() { _ = private.Close() }()
	serving.Go(func() {
		for conn, err := private.Accept(); err == nil; conn, err = private.Accept() {
			_, _ = conn.Write([]byte("secret"))
			_ = conn.Close()
		}
	})
	_, port, _ := net.SplitHostPort(private.Addr().String())
	spec := providers.Spec{Workspace: "kept", Name: "kept", Image: testbed.RegistryImage(t), Resources: providers.Resources{DiskBytes: 256 << 20}}
	if _, err := p.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	if note, err := p.Resize(ctx, "kept", providers.Resources{DiskBytes: 1 << 30}); err != nil || note != "" {
		t.Fatalf("%q, %v", note, err)
	}
	if err := p.Start(ctx, "kept"); err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		output, _ := inside(t, p, "kept", "sh", "-c", fmt.Sprintf(
			"nc -w 5 %s %s </dev/null 2>/dev/null || printf no", netGateway, port))
		return output
	}
	output, code := inside(t, p, "kept", "sh", "-c", `df -m / /workspace | awk 'NR > 1 { print ($2 > 800) }' | xargs`)
	if code != 0 || output != "1 1\n" {
		t.Errorf("its disks: status %d: %q", code, output)
	}
	if got := ask(); p.root && got != "no" {
		t.Errorf("from the node's loopback: %q", got)
	}
	last, err := p.run("kept")
	if err != nil {
		t.Fatal(err)
	}
	if p.root { // it is the fence that does it
		if err := p.fence("kept", last.Fence).Lower(ctx); err != nil {
			t.Fatal(err)
		}
		if got := ask(); got != "secret" {
			t.Errorf("without a fence: %q", got)
		}
	}
	if err := p.Stop(ctx, "kept", time.Minute); err != nil {
		t.Errorf("stop it without its fence: %v", err)
	}
}

// Without the firewall's program a root agent starts no machine with a network.
func TestNoFence(t *testing.T) {
	p := New(Options{StateDir: t.TempDir()})
	defer func() { _ = p.Close() }()
	p.iptables = ""
	err := p.raise(t.Context(), "w1", 1)
	var own *providers.Error
	if !errors.As(err, &own) || !errors.Is(err, providers.ErrUnusable) || !strings.Contains(own.Next, "install iptables") {
		t.Errorf("raised: %v", err)
	}
	if err := p.fence("w1", 1).Lower(t.Context()); err != nil {
		t.Errorf("lower a fence that never stood: %v", err)
	}
}

// A QEMU that complains without end neither waits for a reader nor fills a disk,
// and its first words are what is told.
func TestOutputIsBounded(t *testing.T) {
	output, err := openOutput()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = output.Close() }()
	if got := lastWords(output); got != "it left no word" {
		t.Errorf("before it said anything: %q", got)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `echo first; i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done`)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // by then a shell knows that its words are lost
	if got := lastWords(output); !strings.HasPrefix(got, "first\n0123") || len(got) > 4096 {
		t.Errorf("it said %q", got)
	}
}
