package bench

import (
	"bufio"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of the times in /proc: 1/100 s on Linux, everywhere.
const clockTick = 10 * time.Millisecond

type processID struct {
	name string
	pid  int
}

// ProcessUsage is what one process took during a phase.
type ProcessUsage struct {
	Name string `json:"name"`
	// CPUSeconds of all its threads, user and system.
	CPUSeconds float64 `json:"cpu_seconds"`
	// PeakBytes is the highest resident memory.
	PeakBytes int64 `json:"peak_bytes"`
}

// meter measures processes over a phase. It reads /proc, and measures nothing
// where there is none.
type meter struct {
	ids   []processID
	begun []time.Duration
}

func startMeter(ids []processID) *meter {
	m := &meter{ids: ids}
	for _, id := range ids {
		// 5 sets the highest resident memory back to the present one.
		_ = os.WriteFile(procFile(id.pid, "clear_refs"), []byte("5"), 0o600)
		m.begun = append(m.begun, cpuTime(id.pid))
	}
	return m
}

func (m *meter) stop() []ProcessUsage {
	var used []ProcessUsage
	for i, id := range m.ids {
		if cpu := cpuTime(id.pid); cpu > 0 {
			used = append(used, ProcessUsage{Name: id.name, CPUSeconds: (cpu - m.begun[i]).Seconds(), PeakBytes: peakBytes(id.pid)})
		}
	}
	return used
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// cpuTime is 0 where it is not known.
func cpuTime(pid int) time.Duration {
	text, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold spaces; utime and stime are the 12th
	// and 13th field after it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * clockTick
}

func peakBytes(pid int) int64 {
	kib, _ := strconv.ParseInt(strings.TrimSuffix(procValue(procFile(pid, "status"), "VmHWM"), " kB"), 10, 64)
	return kib << 10
}

// procValue is the value of the first line "name: value" of a file.
func procValue(path, name string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
