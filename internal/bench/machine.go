package bench

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/sluicehq/sluice/internal/engine"
)

// Machine is what a benchmark ran on.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory int64  `json:"memory_bytes"`
	System string `json:"system"`
	Go     string `json:"go"`
	Engine string `json:"clickhouse"`
	Sluice string `json:"sluice"`
	Date   string `json:"date"`
}

// ThisMachine describes the machine that the program runs on, today, but not
// its name. What the system does not tell is left empty: the processor, the
// memory and the distribution are only known on Linux. The argument is the
// version of Sluice.
func ThisMachine(sluice string) Machine {
	kib, _ := strconv.ParseInt(strings.TrimSuffix(procValue("/proc/meminfo", "MemTotal"), " kB"), 10, 64)
	return Machine{
		CPU:    procValue("/proc/cpuinfo", "model name"),
		Cores:  runtime.NumCPU(),
		Memory: kib << 10,
		System: systemName(),
		Go:     strings.TrimPrefix(runtime.Version(), "go"),
		Engine: engine.LibraryVersion,
		Sluice: sluice,
		Date:   time.Now().UTC().Format(time.DateOnly),
	}
}

// systemName is the distribution, the kernel and the architecture.
func systemName() string {
	var names []string
	release, _ := os.ReadFile("/etc/os-release")
	if name := prettyName(string(release)); name != "" {
		names = append(names, name)
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	names = append(names, strings.TrimSpace(runtime.GOOS+" "+string(kernel)), runtime.GOARCH)
	return strings.Join(names, ", ")
}

// prettyName is the distribution's name for people, from its os-release file.
func prettyName(release string) string {
	for line := range strings.Lines(release) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(value, `"'`)
		}
	}
	return ""
}
