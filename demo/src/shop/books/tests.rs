use super::*;

fn order(id: &str, item: &str) -> Order {
    let (customer, item) = ("ada".to_owned(), item.to_owned());
    Order { id: id.to_owned(), customer, item, quantity: 2, amount: 80 }
}

/// A shop that has sold two chairs, and a gift card.
fn right() -> Look {
    let paid = || vec![("ada".to_owned(), 80)];
    Look {
        orders: [("a", "chair"), ("g", GIFT_CARD)].map(|(id, item)| (id.to_owned(), order(id, item))).into(),
        payments: [("a".to_owned(), paid()), ("g".to_owned(), paid())].into(),
        reservations: [("a".to_owned(), vec![("chair".to_owned(), 2)])].into(),
        items: [("chair".to_owned(), (10, 8)), ("lamp".to_owned(), (5, 5))].into(),
        prepared: [("orders-db", 0), ("payments-db", 0)].into(),
    }
}

/// What is found after a change to what is right.
fn after(change: impl FnOnce(&mut Look)) -> Vec<String> {
    let mut look = right();
    change(&mut look);
    check(&look, &BTreeMap::new()).iter().map(ToString::to_string).collect()
}

#[test]
fn right_books_are_right() {
    assert_eq!(after(|_| ()), [] as [&str; 0]);
}

#[test]
fn every_part_that_is_missing_is_found() {
    let lost_order = after(|look| drop(look.orders.remove("a")));
    assert_eq!(
        lost_order,
        [
            "order a is half done: payments and inventory have it, orders not",
            "chair: 8 in stock and 0 sold make 8, not 10"
        ]
    );
    let unpaid = after(|look| drop(look.payments.remove("a")));
    assert_eq!(unpaid, ["order a is half done: orders and inventory have it, payments not"]);
    let not_taken = after(|look| drop(look.reservations.remove("a")));
    assert_eq!(not_taken, ["order a is half done: orders and payments have it, inventory not"]);
    let only_paid = after(|look| drop(look.orders.remove("g")));
    assert_eq!(only_paid, ["order g is half done: payments have it, orders and inventory not"]);
    let free_card = after(|look| drop(look.payments.remove("g")));
    assert_eq!(free_card, ["order g is half done: orders have it, payments not"]);
}

#[test]
fn what_was_done_twice_or_otherwise_is_found() {
    let paid = |look: &mut Look, amount| look.payments.get_mut("a").unwrap().push(("ada".to_owned(), amount));
    assert_eq!(after(|look| paid(look, 80)), ["order a was paid 2 times"]);
    assert_eq!(after(|look| paid(look, 7)).len(), 2);
    let taken = |look: &mut Look| look.reservations.get_mut("a").unwrap().push(("chair".to_owned(), 2));
    assert_eq!(after(taken), ["order a was taken from the shelf 2 times"]);
    let otherwise = |look: &mut Look| look.reservations.get_mut("a").unwrap()[0].0 = "lamp".to_owned();
    assert_eq!(after(otherwise), ["order a: taken is [(\"lamp\", 2)], and ordered 2 of chair"]);
}

#[test]
fn stock_and_sold_make_what_was_received() {
    let stolen = after(|look| look.items.get_mut("lamp").unwrap().1 -= 1);
    assert_eq!(stolen, ["lamp: 4 in stock and 0 sold make 4, not 5"]);
}

#[test]
fn what_is_in_doubt_is_found() {
    let in_doubt = after(|look| look.prepared = [("payments-db", 3)].into());
    assert_eq!(in_doubt, ["payments-db holds 3 prepared branches that wait for their decision"]);
}

#[test]
fn what_a_customer_was_told_has_to_be_true() {
    let told = |order: &str, told: Told| check(&right(), &[(order.to_owned(), told)].into()).len();
    assert_eq!(told("a", Told::Committed), 0);
    assert_eq!(told("x", Told::Committed), 1);
    assert_eq!(told("x", Told::Declined(String::new())), 0);
    assert_eq!(told("a", Told::RolledBack(String::new())), 1);
    assert_eq!(told("a", Told::Unknown(String::new())), 0);
    assert_eq!(told("x", Told::Unknown(String::new())), 0);
}

#[test]
fn what_was_lost_is_counted() {
    let mut look = right();
    assert_eq!((look.paid_for_nothing(), look.unpaid()), ((0, 0), (0, 0)));
    look.reservations.clear();
    assert_eq!(look.paid_for_nothing(), (1, 80));
    look.orders.remove("g");
    assert_eq!(look.paid_for_nothing(), (2, 160));
    look.payments.clear();
    assert_eq!((look.paid_for_nothing(), look.unpaid()), ((0, 0), (1, 80)));
}
