package deploytest

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// units are the binaries of the Linux packages' units.
var units = map[string]string{"ingest": "ingest", "worker": "tiktok-worker", "provision": "ingest"}

// directives returns the lines of a unit file as key=value.
func directives(t *testing.T, name string) []string {
	t.Helper()
	return regexp.MustCompile(`(?m)^\w+=.*$`).FindAllString(read(t, name), -1)
}

// The units may do what the containers may.
func TestUnits_LeastPrivilege(t *testing.T) {
	t.Parallel()
	shared := directives(t, "deploy/linux/hardening.conf")
	for _, want := range []string{
		"NoNewPrivileges=yes", "CapabilityBoundingSet=", "AmbientCapabilities=", "ProtectSystem=strict",
		"ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes", "PrivateUsers=yes", "MemoryDenyWriteExecute=yes",
		"RestrictNamespaces=yes", "SystemCallArchitectures=native", "SystemCallFilter=@system-service",
		"SystemCallFilter=~@privileged @resources", "MemoryMax=128M", "TasksMax=128", "TimeoutStopSec=15s",
	} {
		if !slices.Contains(shared, want) {
			t.Errorf("hardening.conf has no %s", want)
		}
	}
	files, err := filepath.Glob(filepath.Join(root, "deploy/linux/*.service"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(units) {
		t.Errorf("units = %q, want %d", files, len(units))
	}
	for unit, binary := range units {
		own := directives(t, "deploy/linux/purchase-relay-"+unit+".service")
		for _, want := range []string{
			"User=purchase-relay-" + unit, "Group=purchase-relay-" + unit,
			"EnvironmentFile=/etc/purchase-relay/" + unit + ".env",
		} {
			if !slices.Contains(own, want) {
				t.Errorf("unit %s has no %s", unit, want)
			}
		}
		started := func(line string) bool {
			return strings.HasPrefix(line+" ", "ExecStart=/usr/bin/"+binary+" ")
		}
		if !slices.ContainsFunc(own, started) {
			t.Errorf("unit %s does not start %s: %q", unit, binary, own)
		}
	}
}

// A unit's file names variables that its binary takes, and no secret: those are files in the unit's folder.
func TestUnits_NameVariablesAndSecretFiles(t *testing.T) {
	t.Parallel()
	for unit, binary := range units {
		known := variables(t, binary)
		set := assignments(read(t, "deploy/linux/"+unit+".env"))
		if len(set) == 0 {
			t.Errorf("%s.env assigns nothing", unit)
		}
		for name, value := range set {
			setting, suffixed := strings.CutSuffix(name, "_FILE")
			secret := suffixed && known[setting].File
			if v, taken := known[name]; !secret && (!taken || v.File) {
				t.Errorf("%s.env assigns %s, which %s does not take outside of a secret's file", unit, name, binary)
			}
			if secret && !strings.HasPrefix(value, "/etc/purchase-relay/"+unit+"/") {
				t.Errorf("%s.env: %s=%s, want a file of the unit's folder", unit, name, value)
			}
		}
	}
}

// The package has each unit with a user, a folder and a configuration that an upgrade keeps.
func TestPackages_HoldUnitsAndConfiguration(t *testing.T) {
	t.Parallel()
	packages := at(decode(t, ".goreleaser.yaml")[0], "nfpms 0")
	contents := map[string]any{}
	for _, c := range list(packages, "contents") {
		contents[text(c, "dst")] = c
	}
	users := read(t, "deploy/linux/preinstall.sh")
	stopped := read(t, "deploy/linux/preremove.sh")
	for unit := range units {
		for destination, want := range map[string]string{
			"/etc/purchase-relay/" + unit:          "dir 488 purchase-relay-" + unit,              // 0750
			"/etc/purchase-relay/" + unit + ".env": "config|noreplace 416 purchase-relay-" + unit, // 0640
		} {
			c := contents[destination]
			got := text(c, "type") + " " + text(c, "file_info mode") + " " + text(c, "file_info group")
			if got != want {
				t.Errorf("%s = %s, want %s", destination, got, want)
			}
		}
		if !regexp.MustCompile(`for unit in .*\b` + unit + `\b`).MatchString(users) {
			t.Errorf("preinstall.sh makes no user for %s", unit)
		}
		if !strings.Contains(stopped, "purchase-relay-"+unit+".service") {
			t.Errorf("preremove.sh does not stop %s", unit)
		}
	}
	for _, c := range list(packages, "contents") {
		source := text(c, "src")
		if strings.HasPrefix(source, "dist-extra/") || source == "" {
			continue
		}
		if found, err := filepath.Glob(filepath.Join(root, source)); err != nil || len(found) == 0 {
			t.Errorf("contents: %s does not exist", source)
		}
	}
}
