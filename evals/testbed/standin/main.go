//go:build linux

// Command standin takes the guest's place in tests of drivers: it dials the link
// and runs what comes there, one shell script a line, until SIGTERM.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	fmt.Println("guest is up")
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	if len(os.Args) > 2 { // --link SOCKET
		go dial(os.Args[2])
	}
	<-end
}

func dial(socket string) {
	for range time.Tick(2 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			serve(conn)
		}
	}
}

func serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		if line == "ignore-term\n" {
			signal.Ignore(syscall.SIGTERM)
			fmt.Fprintf(conn, "0 0\n")
			continue
		}
		cmd := exec.Command("sh", "-c", line)
		out, _ := cmd.CombinedOutput()
		fmt.Fprintf(conn, "%d %d\n%s", cmd.ProcessState.ExitCode(), len(out), out)
	}
}
