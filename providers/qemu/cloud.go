//go:build linux

package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// userData brings the guest into a machine that boots by itself: at each boot
// cloud-init takes it from the seed and starts it, so that an instance that was
// made anew, or a node with a newer guest, needs nothing else.
const userData = `#cloud-config
hostname: "%[1]s"
preserve_hostname: false
bootcmd:
  - [mkdir, -p, /run/vendetta-seed, /.vendetta/bin]
  - [mount, -o, ro, -L, CIDATA, /run/vendetta-seed]
  - [cp, /run/vendetta-seed/vendetta-guest, /.vendetta/bin/vendetta-guest.new]
  - [chmod, "0755", /.vendetta/bin/vendetta-guest.new]
  - [mv, /.vendetta/bin/vendetta-guest.new, /.vendetta/bin/vendetta-guest]
  - [cp, /run/vendetta-seed/vendetta-guest.service, /run/systemd/system/vendetta-guest.service]
  - [umount, /run/vendetta-seed]
  - [systemctl, daemon-reload]
  - [systemctl, start, --no-block, vendetta-guest.service]
`

// unit runs the guest. Its commands are bounded with it.
const unit = `[Unit]
Description=the guest of a vendetta workspace
DefaultDependencies=no
After=local-fs.target
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/.vendetta/bin/vendetta-guest --machine
Restart=always
RestartSec=1
TasksMax=%d
TimeoutStopSec=20
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
StandardOutput=journal+console
StandardError=journal+console
`

// networkConfig is the user network's, on whatever the card is called there.
const networkConfig = `version: 2
ethernets:
  all:
    match: {name: "e*"}
    dhcp4: true
`

// guestMost bounds the guest's program, in bytes.
const guestMost = 24 << 20

// writeCloudSeed writes the NoCloud seed of a machine that boots by itself.
func (p *Provider) writeCloudSeed(ws string, r record) (err error) {
	guest, err := readFile(p.opts.GuestProgram, guestMost)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(p.instanceDir(ws), seedFile), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return writeFAT(f, []fatFile{
		// The id stays for an instance's life; a new one is a new machine to cloud-init.
		{"meta-data", fmt.Appendf(nil, "instance-id: vendetta-%s\nlocal-hostname: %q\n", ws, r.Name)},
		{"user-data", fmt.Appendf(nil, userData, r.Name)},
		{"network-config", []byte(networkConfig)},
		{"vendetta-guest.service", fmt.Appendf(nil, unit, r.Resources.PIDs)},
		{"vendetta-guest", guest},
	})
}
