// Package permute lists orders, for tests of events that arrive in any.
package permute

import "slices"

// Of returns every order of the numbers below n.
func Of(n int) (orders [][]int) {
	if n == 0 {
		return [][]int{nil}
	}
	for _, order := range Of(n - 1) {
		for at := range n {
			orders = append(orders, slices.Insert(slices.Clone(order), at, n-1))
		}
	}
	return orders
}
