#![allow(clippy::unwrap_used)]
use super::*;

/// RFC 8452 appendix C.2 (AEAD_AES_256_GCM_SIV): key, nonce, associated data, plaintext, ciphertext and tag.
#[rustfmt::skip]
const RFC_8452: &[[&str; 5]] = &[
    ["0100000000000000000000000000000000000000000000000000000000000000", "030000000000000000000000", "", "", "07f5f4169bbf55a8400cd47ea6fd400f"],
    ["0100000000000000000000000000000000000000000000000000000000000000", "030000000000000000000000", "", "0100000000000000", "c2ef328e5c71c83b843122130f7364b761e0b97427e3df28"],
    ["0100000000000000000000000000000000000000000000000000000000000000", "030000000000000000000000", "", "01000000000000000000000000000000", "85a01b63025ba19b7fd3ddfc033b3e76c9eac6fa700942702e90862383c6c366"],
    ["0100000000000000000000000000000000000000000000000000000000000000", "030000000000000000000000", "", "0100000000000000000000000000000002000000000000000000000000000000", "4a6a9db4c8c6549201b9edb53006cba821ec9cf850948a7c86c68ac7539d027fe819e63abcd020b006a976397632eb5d"],
    ["0100000000000000000000000000000000000000000000000000000000000000", "030000000000000000000000", "", "01000000000000000000000000000000020000000000000000000000000000000300000000000000000000000000000004000000000000000000000000000000", "c2d5160a1f8683834910acdafc41fbb1632d4a353e8b905ec9a5499ac34f96c7e1049eb080883891a4db8caaa1f99dd004d80487540735234e3744512c6f90ce112864c269fc0d9d88c61fa47e39aa08"],
    ["0100000000000000000000000000000000000000000000000000000000000000", "030000000000000000000000", "01", "020000000000000000000000", "163d6f9cc1b346cd453a2e4cc1a4a19ae800941ccdc57cc8413c277f"],
    ["0100000000000000000000000000000000000000000000000000000000000000", "030000000000000000000000", "01", "0200000000000000000000000000000003000000000000000000000000000000", "07dad364bfc2b9da89116d7bef6daaaf6f255510aa654f920ac81b94e8bad365aea1bad12702e1965604374aab96dbbc"],
    ["0100000000000000000000000000000000000000000000000000000000000000", "030000000000000000000000", "010000000000000000000000000000000200", "0300000000000000000000000000000004000000", "43dd0163cdb48f9fe3212bf61b201976067f342bb879ad976d8242acc188ab59cabfe307"],
    ["0100000000000000000000000000000000000000000000000000000000000000", "030000000000000000000000", "0100000000000000000000000000000002000000", "030000000000000000000000000000000400", "462401724b5ce6588d5a54aae5375513a075cfcdf5042112aa29685c912fc2056543"],
    ["bae8e37fc83441b16034566b7a806c46bb91c3c5aedb64a6c590bc84d1a5e269", "e4b47801afc0577e34699b9e", "4fbdc66f14", "671fdd", "0eaccb93da9bb81333aee0c785b240d319719d"],
    ["d1894728b3fed1473c528b8426a582995929a1499e9ad8780c8d63d0ab4149c0", "9f572c614b4745914474e7c7", "489c8fde2be2cf97e74e932d4ed87d", "c9882e5386fd9f92ec", "0df9e308678244c44bc0fd3dc6628dfe55ebb0b9fb2295c8c2"],
    ["9745b3d1ae06556fb6aa7890bebc18fe6b3db4da3d57aa94842b9803a96e07fb", "6de71860f762ebfbd08284e4", "f37de21c7ff901cfe8a69615a93fdf7a98cad481796245709f", "21702de0de18baa9c9596291b08466", "793576dfa5c0f88729a7ed3c2f1bffb3080d28f6ebb5d3648ce97bd5ba67fd"],
    ["3c535de192eaed3822a2fbbe2ca9dfc88255e14a661b8aa82cc54236093bbc23", "688089e55540db1872504e1c", "734320ccc9d9bbbb19cb81b2af4ecbc3e72834321f7aa0f70b7282b4f33df23f167541", "ced532ce4159b035277d4dfbb7db62968b13cd4eec", "626660c26ea6612fb17ad91e8e767639edd6c9faee9d6c7029675b89eaf4ba1ded1a286594"],
];

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn rfc_8452_vectors() {
    for vector in RFC_8452 {
        let [key, nonce, aad, plain, expected] = vector.map(unhex);
        let cipher = Cipher::new(&key.try_into().unwrap()).0;
        let nonce = Nonce::try_from(&nonce[..]).unwrap();
        let mut out = vec![0xff; plain.len()];
        let tag = cipher.encrypt_inout_detached(&nonce, &aad, InOutBuf::new(&plain, &mut out).unwrap()).unwrap();
        assert_eq!(hex(&[&out[..], &tag[..]].concat()), hex(&expected));
        let mut back = vec![0xff; plain.len()];
        cipher.decrypt_inout_detached(&nonce, &aad, InOutBuf::new(&out, &mut back).unwrap(), &tag).unwrap();
        assert_eq!(back, plain);
    }
}

const AT: Binding =
    Binding { volume: Uuid([0x44; 16]), kind: Kind::Page, addr: BlockAddr(0x0102_0304), context: [7, 2] };
const ID: WriteId = WriteId { epoch: 5, counter: 0x1_0000_0001 };

fn cipher() -> Cipher {
    Cipher::new(&[0x11; 32])
}

/// Frozen, and computed with another implementation (in Python): format version 2. A change here makes every volume
/// unreadable.
#[test]
fn frozen_vector_of_a_block() {
    let plain: Vec<u8> = (0..4096u32).map(|i| (i % 251) as u8).collect();
    let mut sealed = vec![0; 4096];
    let tag = cipher().seal_block(&AT, ID, &plain, &mut sealed);
    assert_eq!(
        hex(&AT.associated_data(4096)),
        "530202000010000044444444444444444444444444444444040302010000000007000000000000000200000000000000"
    );
    assert_eq!(hex(&tag), "a25de2445bf43fd19b8c1fc8216fafb4");
    assert_eq!(
        hex(&super::super::sha256(&[&sealed])),
        "b0d9d92b88beab74056950647a32339a3973d5394e192c395c5465494021e7cc"
    );
}

#[test]
fn a_block_opens_only_where_and_as_what_it_was_sealed() {
    let plain = [0x77; 4096];
    let mut sealed = [0; 4096];
    let tag = cipher().seal_block(&AT, ID, &plain, &mut sealed);
    let opens = |at: &Binding, id, tag: &Tag, sealed: &[u8]| {
        let mut out = vec![0xff; sealed.len()];
        let opened = cipher().open_block(at, id, tag, sealed, &mut out);
        let mut place = sealed.to_vec();
        assert_eq!(cipher().open_in_place(at, id, tag, &mut place), opened);
        if opened.is_err() {
            assert!(out.iter().all(|b| *b == 0), "unauthenticated bytes were left");
            assert_eq!(place, sealed);
        } else {
            assert_eq!((&out[..], &place[..]), (&plain[..], &plain[..]));
        }
        opened.is_ok()
    };
    assert!(opens(&AT, ID, &tag, &sealed));
    for kind in [Kind::Data, Kind::MapNode, Kind::SpacePage, Kind::SpaceNode, Kind::Root] {
        assert!(!opens(&Binding { kind, ..AT }, ID, &tag, &sealed), "moved to {kind:?}");
    }
    assert!(!opens(&Binding { addr: AT.addr.add(1), ..AT }, ID, &tag, &sealed), "another address");
    assert!(!opens(&Binding { volume: Uuid([0x45; 16]), ..AT }, ID, &tag, &sealed), "another volume");
    assert!(!opens(&Binding { context: [8, 2], ..AT }, ID, &tag, &sealed), "another page");
    assert!(!opens(&Binding { context: [7, 3], ..AT }, ID, &tag, &sealed), "another level");
    assert!(!opens(&AT, ID.add(1), &tag, &sealed), "another write");
    assert!(!opens(&AT, WriteId { epoch: 6, ..ID }, &tag, &sealed), "another epoch");
    assert!(!opens(&AT, ID, &tag, &sealed[..4080]), "cut short");
    for bit in [0, 1, 4095 * 8, 4096 * 8 - 1] {
        let mut altered = sealed;
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(!opens(&AT, ID, &tag, &altered), "bit {bit}");
    }
    for bit in 0..128 {
        let mut altered = tag;
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(!opens(&AT, ID, &altered, &sealed), "bit {bit} of the tag");
    }
}

#[test]
fn in_place_and_out_of_place_agree_at_every_length() {
    for len in (0..=1024).step_by(16) {
        let plain = vec![0x3c; len];
        let mut out = vec![0; len];
        let tag = cipher().seal_block(&AT, ID, &plain, &mut out);
        let mut place = plain.clone();
        assert_eq!(cipher().seal_in_place(&AT, ID, &mut place), tag);
        assert_eq!(place, out);
    }
}
