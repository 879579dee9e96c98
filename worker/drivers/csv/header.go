package csv

import (
	"fmt"
	"slices"
	"strconv"
)

// columnNames makes header cells column names as pandas' mangle_dupe_names
// does: empty ones are "Unnamed: i", repeated ones get ".1", ".2" and so on. It
// also returns the cell each name came from, by which dtype is looked up.
func columnNames(cells []string) (names, origin []string) {
	names = slices.Clone(cells)
	var order, unnamed []int
	for i, name := range names {
		if name == "" {
			names[i] = fmt.Sprintf("Unnamed: %d", i)
			unnamed = append(unnamed, i)
		} else {
			order = append(order, i)
		}
	}
	taken := make(map[string]int, len(names)) // how many columns have the name now
	for _, name := range names {
		taken[name]++
	}
	origin = slices.Clone(names)
	counts := make(map[string]int, len(names))
	for _, i := range append(order, unnamed...) {
		base := names[i]
		name := base
		count := counts[name]
		for count > 0 {
			counts[base] = count + 1
			name = base + "." + strconv.Itoa(count)
			if taken[name] > 0 {
				count++
			} else {
				count = counts[name]
			}
		}
		taken[names[i]]--
		taken[name]++
		names[i] = name
		counts[name] = count + 1
	}
	return names, origin
}
